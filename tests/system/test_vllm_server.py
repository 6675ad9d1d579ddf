"""A server over vLLM as its clients see it: against vLLM alone, and against transformers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import torch
from command_process import CommandProcess, ready_server
from openai.types import Completion
from plain_vllm import TOKENS, answers_alone
from transformers import AutoTokenizer, PreTrainedModel

from splitwise.engine.model_files import DEFAULT_MODEL, ModelFolder
from splitwise.launch.local_server import running_server
from waiting import eventually

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

TEXTS = [
    "The capital of France is",
    "def fibonacci(n):\n",
    "One, two, three,",
    "A llama is an animal that",
    "¿Qué es una llama? Una llama es",
    "The first rule of writing a good story is to begin in the middle. " * 12,
]
ENGINE = ["--engine=vllm", "--dtype=float32", "--kv-cache-gib=0.5"]
CONTEXT_TOKENS = 2048
ARGUMENTS = f"--enforce-eager --max-num-batched-tokens 64 --max-model-len {CONTEXT_TOKENS}"
SCHEDULER_PORT = 7431
KEY = "a key of this test alone"
POLL_S = 0.1
TOLERANCE = 2e-3
"""Of log-probabilities in float32, by other kernels in another order."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """The cores are the machines'."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ready_server(
        *("--prompt=1", "--token=1", *ENGINE, f"--scheduler-port={SCHEDULER_PORT}"),
        *("--vllm-args", ARGUMENTS),
        log=tmp_path_factory.mktemp("vllm") / "log",
        environment=os.environ | {"SPLITWISE_CLUSTER_KEY": KEY},
    ) as (process, url):
        yield url
        process.terminate()
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer(model_folder: ModelFolder) -> Any:
    return AutoTokenizer.from_pretrained(model_folder.path)


@pytest.fixture(scope="module")
def expected(model_folder: ModelFolder, tokenizer: Any) -> list[list[int]]:
    """What vLLM says alone, in a process of its own."""
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    return answers_alone(model_folder.path, prompts, threads=1)


def complete(client: openai.OpenAI, prompt: Any, *, stream: bool = False, **options: Any) -> Any:
    """The answer, or its chunks."""
    return client.completions.create(
        model=DEFAULT_MODEL,
        prompt=prompt,
        stream=stream,
        extra_body={"max_tokens": TOKENS, "temperature": 0, **options},
    )


def text_of(answer: Completion) -> str:
    return answer.choices[0].text


def test_greedy_text_is_that_of_vllm_alone_and_of_transformers(
    client: openai.OpenAI, tokenizer: Any, expected: list[list[int]], reference: PreTrainedModel
) -> None:
    for text, tokens in zip(TEXTS, expected, strict=True):
        prompt = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            whole = reference.generate(prompt, max_new_tokens=TOKENS, do_sample=False)
        assert whole[0, prompt.shape[1] :].tolist() == tokens
        words = tokenizer.decode(tokens)
        answer = complete(client, text, ignore_eos=True)
        assert text_of(answer) == words
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == prompt.shape[1]
        assert answer.usage.completion_tokens == TOKENS
        chunks = list(complete(client, text, ignore_eos=True, stream=True))
        assert "".join(text_of(chunk) for chunk in chunks) == words
        assert len(chunks) > 2  # it came as it was made


def test_a_chat_is_what_its_template_makes_of_it(client: openai.OpenAI, tokenizer: Any) -> None:
    messages: Any = [{"role": "user", "content": "Name three fruits."}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    chat = client.chat.completions.create(
        model=DEFAULT_MODEL, messages=messages, max_tokens=TOKENS, temperature=0
    )
    assert chat.choices[0].message.content == text_of(complete(client, text))


def test_draws_are_repeated_by_their_seed(client: openai.OpenAI) -> None:
    options = {"temperature": 1.2, "top_p": 0.95, "presence_penalty": 0.3, "max_tokens": 24}
    texts = [text_of(complete(client, TEXTS[3], seed=seed, **options)) for seed in (1, 2, 3, 1)]
    assert texts[0] == texts[3]
    assert len(set(texts)) == 3


def test_draws_are_those_of_the_embedded_engine(client: openai.OpenAI) -> None:
    """They hang on seed and position alone, so that another machine can go on with a request."""
    options = {"temperature": 0.9, "top_k": 40, "frequency_penalty": 0.4, "seed": 11}
    ours = [text_of(complete(client, text, **options)) for text in TEXTS]
    with (
        running_server("--dtype=float32") as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as other,
    ):
        assert [text_of(complete(other, text, **options)) for text in TEXTS] == ours


def test_log_probabilities_are_the_models(
    client: openai.OpenAI, tokenizer: Any, expected: list[list[int]], reference: PreTrainedModel
) -> None:
    for text, tokens in zip(TEXTS[:3], expected[:3], strict=True):
        prompt = tokenizer(text)["input_ids"]
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        best = torch.log_softmax(logits, dim=-1).topk(3)
        told = complete(client, text, ignore_eos=True, logprobs=3).choices[0].logprobs
        assert told is not None and told.token_logprobs is not None and told.top_logprobs
        assert told.token_logprobs == pytest.approx(best.values[:, 0].tolist(), abs=TOLERANCE)
        for position, top in enumerate(told.top_logprobs):
            words = [tokenizer.decode(token) for token in best.indices[position].tolist()]
            assert list(top) == words
            assert list(top.values()) == pytest.approx(
                best.values[position].tolist(), abs=TOLERANCE
            )


def test_stop_strings_and_tokens_end_a_text(
    client: openai.OpenAI, tokenizer: Any, expected: list[list[int]]
) -> None:
    words = tokenizer.decode(expected[2])
    stop = words[4:8]
    for stream in (False, True):
        answers = complete(client, TEXTS[2], ignore_eos=True, stop=[stop], stream=stream)
        chunks = list(answers) if stream else [answers]
        assert "".join(text_of(chunk) for chunk in chunks) == words[: words.index(stop)]
        assert chunks[-1].choices[0].finish_reason == "stop"
    ends = expected[2].index(expected[2][5])
    answer = complete(client, TEXTS[2], ignore_eos=True, stop_token_ids=[expected[2][5]])
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.completion_tokens == ends + 1


def gauges(url: str, name: str) -> list[float]:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return [
        float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"splitwise:{name}{{")
    ]


def is_at_rest(url: str) -> bool:
    return not any(gauges(url, "num_requests_running") + gauges(url, "kv_cache_usage_perc"))


def test_who_goes_away_in_mid_stream_leaves_nothing_behind(url: str, client: openai.OpenAI) -> None:
    eventually(lambda: is_at_rest(url), POLL_S)
    for text in (TEXTS[0], TEXTS[5]):
        stream = complete(client, text, ignore_eos=True, max_tokens=1500, stream=True)
        for _ in range(4):
            next(stream)
        eventually(lambda: any(gauges(url, "num_requests_running")), POLL_S)
        stream.close()
        eventually(lambda: is_at_rest(url), POLL_S)


def test_the_longest_context_is_the_machines(url: str, client: openai.OpenAI) -> None:
    [model] = httpx.get(f"{url}/v1/models").json()["data"]
    assert model["max_model_len"] == CONTEXT_TOKENS
    with pytest.raises(openai.BadRequestError, match=str(CONTEXT_TOKENS)):
        complete(client, [5] * CONTEXT_TOKENS)


def test_what_vllm_counts_is_exported(url: str, client: openai.OpenAI) -> None:
    before = gauges(url, "prefix_cache_hits_total")
    for _ in range(2):
        complete(client, "It was the best of times, it was the worst of times. " * 20)
    eventually(lambda: sum(gauges(url, "prefix_cache_hits_total")) > sum(before), POLL_S)
    assert sum(gauges(url, "prefix_cache_queries_total")) >= sum(
        gauges(url, "prefix_cache_hits_total")
    )


def test_a_machine_of_the_other_engine_is_refused_with_the_reason(url: str) -> None:
    worker = CommandProcess(
        *("worker", f"--join=127.0.0.1:{SCHEDULER_PORT}", "--dtype=float32", "--rejoin-s=0"),
        cluster_key=KEY,
    )
    assert worker.wait() == 1
    assert "the cluster refused this machine" in worker.log
    assert f"max_context_tokens 8192 in place of {CONTEXT_TOKENS}" in worker.log


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--max-modle-len 5", "--max-modle-len"),
        ("--block-size large", "--block-size"),
        ("--kv-transfer-config {}", "Splitwise's own connector"),
        ("--speculative_config.method ngram", "one token at a time"),
        ("--quantization nonsense", "nonsense"),
    ],
)
def test_arguments_that_vllm_does_not_take_end_the_start(argument: str, words: str) -> None:
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "splitwise.cli.main", "serve", "--port=0", "--mixed=1"),
            *(*ENGINE, "--vllm-args", argument),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode in (1, 2)
    assert words in ended.stderr.strip().splitlines()[-1], ended.stderr
    assert "Traceback" not in ended.stderr
