"""The same tokens from vLLM alone, one mixed machine, and 1 + 1 by every way that a cache goes."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest
from command_process import ready_server
from plain_vllm import TOKENS, answers_alone
from token_client import complete

from splitwise.engine.model_files import DEFAULT_MODEL, resolve_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500)]

LENGTHS = [
    *(1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 126, 127, 128, 129, 144, 200, 233, 255, 256, 257, 258),
    *(300, 384, 385, 400, 511, 512, 513, 610, 769, 987, 1597, 3000),
]
ENGINE = ["--engine=vllm", "--dtype=float32", "--kv-cache-gib=1"]
CHUNKED = "--enforce-eager --max-num-batched-tokens 256"
WAYS = {
    "mixed": ["--mixed=1"],
    "shared memory": ["--prompt=1", "--token=1", "--transport=shared_memory"],
    "TCP, checked": ["--prompt=1", "--token=1", "--transport=tcp", "--checksum"],
}


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Some share beginnings, of whole blocks and of half ones."""
    rng = random.Random(3)
    shared = [rng.randrange(1000, 40_000) for _ in range(320)]
    prompts = [[rng.randrange(1000, 40_000) for _ in range(length)] for length in LENGTHS]
    for prompt in prompts[::4]:
        prompt[:320] = shared[: len(prompt)]
    return prompts


@pytest.fixture(scope="module")
def expected(prompts: list[list[int]]) -> list[list[int]]:
    return answers_alone(resolve_model(DEFAULT_MODEL).path, prompts, threads=2)


def answers(url: str, prompts: Sequence[list[int]], at_once: int) -> list[list[int]]:
    with httpx.Client(base_url=url, timeout=600) as client, ThreadPoolExecutor(at_once) as pool:
        ask = partial(complete, client, DEFAULT_MODEL, tokens=TOKENS)
        return list(pool.map(ask, prompts))


@pytest.mark.parametrize("way", WAYS)
def test_tokens_are_those_of_vllm_alone(
    way: str, prompts: list[list[int]], expected: list[list[int]], tmp_path: Path
) -> None:
    log = tmp_path / "serve.log"
    arguments = [*WAYS[way], *ENGINE, f"--vllm-args={CHUNKED}"]
    with ready_server(*arguments, log=log) as (_, url):
        assert answers(url, prompts, at_once=8) == expected, "cold"
        assert answers(url, prompts, at_once=8) == expected, "warm"
        assert answers(url, prompts, at_once=1) == expected, "warm, one by one"


@pytest.mark.parametrize("way", WAYS)
def test_tokens_are_those_of_vllm_alone_without_its_prefix_cache(
    way: str, prompts: list[list[int]], expected: list[list[int]], tmp_path: Path
) -> None:
    log = tmp_path / "serve.log"
    arguments = [*WAYS[way], *ENGINE, f"--vllm-args={CHUNKED} --no-enable-prefix-caching"]
    with ready_server(*arguments, log=log) as (_, url):
        assert answers(url, prompts, at_once=1) == expected
