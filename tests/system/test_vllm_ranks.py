"""Machines of several tensor-parallel ranks, as many at either end or not, each rank a process."""

import random
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from command_process import CommandProcess
from test_rejoin import free_port

from splitwise.engine.model_files import DEFAULT_MODEL, resolve_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

TOKENS = 6
KEY = "a key"
LENGTHS = (1, 40, 128, 300, 500)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, large enough that its answers differ, and heads for up to four ranks."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("ranks") / "four-heads"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=2048,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(resolve_model(DEFAULT_MODEL).path / name, folder)
    return folder


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(1000, 40_000) for _ in range(length)] for length in LENGTHS]


@pytest.fixture(scope="module")
def expected(model: Path, prompts: list[list[int]]) -> list[list[int]]:
    """By transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model)
    answers = []
    for prompt in prompts:
        output = network.generate(
            torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None
        )
        answers.append(output[0, len(prompt) :].tolist())
    return answers


@contextmanager
def cluster(model: Path, ranks: dict[str, int]) -> Iterator[str]:
    """A gateway, and a prompt and a token machine of so many ranks."""
    port, join = free_port(), free_port()
    engine = ["--engine=vllm", "--dtype=float32", "--kv-cache-gib=0.1"]
    with ExitStack() as processes:
        server = CommandProcess(
            *("serve", str(model), f"--port={port}", f"--scheduler-port={join}"),
            *("--external-workers=2", "--no-change-roles", *engine),
            cluster_key=KEY,
        )
        processes.callback(server.kill)
        server.wait_for("waiting for 2 workers")
        for role, count in ranks.items():
            arguments = f"--enforce-eager --max-num-batched-tokens 256 -tp {count}"
            worker = CommandProcess(
                *("worker", f"--join=127.0.0.1:{join}", f"--role={role}", f"--model={model}"),
                *(f"--machine-id={role}", f"--vllm-args={arguments}", *engine),
                cluster_key=KEY,
            )
            processes.callback(worker.end)
        server.wait_for("ready: ")
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(("sources", "targets"), [(2, 1), (1, 2), (2, 2)])
def test_a_rank_sends_its_heads_to_the_ranks_that_own_them(
    sources: int, targets: int, model: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    ranks = {"prompt": sources, "token": targets}
    with cluster(model, ranks) as url, httpx.Client(base_url=url, timeout=300) as client:
        assert [complete(client, prompt) for prompt in prompts] == expected, "cold"
        assert [complete(client, prompt) for prompt in prompts] == expected, "warm"
        text = client.get("/metrics").text
        assert 'splitwise:kv_transfer_failures_total{model_name="four-heads"} 0.0' in text


def complete(client: httpx.Client, prompt: list[int]) -> list[int]:
    body = {"model": "four-heads", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True}
    asked = client.post("/v1/completions", json=body)
    assert asked.status_code == 200, asked.text
    tokens: list[int] = asked.json()["choices"][0]["token_ids"]
    return tokens
