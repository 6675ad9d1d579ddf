"""Machines of several tensor-parallel ranks, as many at either end or not, each rank a process."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from command_process import CommandProcess
from test_rejoin import free_port
from tiny_models import tiny_config
from token_client import complete, generate, random_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

NAME = "four-heads"
TOKENS = 6
CONTEXT = {"max_position_embeddings": 2048}
KEY = "a key"
LENGTHS = (1, 40, 128, 300, 500)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Random weights, large enough that its answers differ, and heads for up to four ranks."""
    folder = tmp_path_factory.mktemp("ranks") / NAME
    sizes = {"vocab_size": 49152, "hidden_size": 256, "num_attention_heads": 8, "head_dim": 32}
    return folder, random_model(
        folder, tiny_config("llama", {**sizes, "num_key_value_heads": 4, **CONTEXT})
    )


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(1000, 40_000) for _ in range(length)] for length in LENGTHS]


@pytest.fixture(scope="module")
def expected(model: tuple[Path, Any], prompts: list[list[int]]) -> list[list[int]]:
    return [generate(model[1], prompt, TOKENS) for prompt in prompts]


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
    sources: int,
    targets: int,
    model: tuple[Path, Any],
    prompts: list[list[int]],
    expected: list[list[int]],
) -> None:
    ranks = {"prompt": sources, "token": targets}
    with cluster(model[0], ranks) as url, httpx.Client(base_url=url, timeout=300) as client:
        assert [complete(client, NAME, prompt, TOKENS) for prompt in prompts] == expected, "cold"
        assert [complete(client, NAME, prompt, TOKENS) for prompt in prompts] == expected, "warm"
        text = client.get("/metrics").text
        assert f'splitwise:kv_transfer_failures_total{{model_name="{NAME}"}} 0.0' in text
