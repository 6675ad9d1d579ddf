"""The whole system over the engine without a model: real processes, transfers and HTTP."""

import os
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from transfer_machines import NEEDS_NIXL

from splitwise.engine.model_files import read_model_info, read_stop_token_ids
from splitwise.engine.null.engine import null_model
from splitwise.engine.null.tokens import continuation, words_of
from splitwise.engine.sampling import SamplingParams
from splitwise.launch.local_server import ServerError, running_server

WORDS = words_of(read_model_info(null_model()).vocab_size, read_stop_token_ids(null_model()))
GREEDY = SamplingParams(temperature=0)
PROMPTS = [list(range(4, 4 + length)) for length in (1, 15, 16, 17, 100)]
CLUSTERS = {
    "split": ["--one-piece-below=0", "--checksum"],
    "one piece": ["--one-piece-below=1000"],
    "tcp": ["--transport=tcp", "--one-piece-below=64"],
    "nixl": ["--transport=nixl", "--one-piece-below=64", "--checksum"],
    "unsplit": ["--mixed=1"],
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=NEEDS_NIXL if name == "nixl" else ()) for name in CLUSTERS],
)
def client(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    arguments = CLUSTERS[request.param]
    with (
        running_server("--engine=null", "--kv-cache-gib=0.01", *arguments) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield client


def complete(client: httpx.Client, prompt: list[int], **options: object) -> list[int]:
    body = {"prompt": prompt, "max_tokens": 40, "return_token_ids": True, **options}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["choices"][0]["token_ids"])


def test_tokens_are_those_predicted_whatever_the_cluster(client: httpx.Client) -> None:
    for prompt in PROMPTS:
        expected = continuation(prompt, 40, GREEDY, WORDS)
        assert complete(client, prompt, temperature=0) == expected
        seeded = continuation(prompt, 40, SamplingParams(seed=5), WORDS)
        assert complete(client, prompt, seed=5) == seeded != expected


def test_a_chat_is_answered_in_words(client: httpx.Client) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    answer = client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 5})
    assert len(answer.json()["choices"][0]["message"]["content"].split()) == 5
    assert client.get("/v1/models").json()["data"][0]["id"] == "null"


def test_a_worker_of_it_starts_without_torch() -> None:
    """Up to where it finds that no cluster scheduler answers."""
    code = (
        "import sys\n"
        "from splitwise.cli.main import main\n"
        "try:\n    main()\n"
        "finally:\n"
        "    print([m for m in ('torch', 'transformers', 'numba') if m in sys.modules])"
    )
    arguments = ["worker", "--join=127.0.0.1:1", f"--model={null_model().path}", "--engine=null"]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"SPLITWISE_CLUSTER_KEY": "a key"},
    )
    assert "no cluster scheduler answers there" in result.stderr
    assert result.stdout.strip() == "[]"


def test_an_engine_that_is_none_is_named() -> None:
    with pytest.raises(ServerError, match="--engine"), running_server("--engine=steam"):
        pass
