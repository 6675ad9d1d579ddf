"""Split or not, over whichever transport: the tokens are those of transformers' own generate."""

import asyncio
from collections.abc import Sequence

import pytest
import torch
from openai import AsyncOpenAI
from transformers import PreTrainedModel

from splitwise.launch.local_server import running_server

OUTPUT_TOKENS = 12
CONCURRENCY = 8
FEW_LENGTHS = [1, 2, 7, 16, 17, 33, 64, 100, 129, 300]
MANY_LENGTHS = [
    *(1, 2, 3, 5, 8, 13, 15, 16, 17, 24, 31, 32, 33, 47, 48, 64, 65, 100, 127, 128),
    *(129, 200, 255, 256, 257, 400, 511, 512, 513, 700, 1000, 1500),
]
CLUSTERS = {
    "mixed": ["--mixed=1"],
    "tcp": ["--transport=tcp", "--one-piece-below=64", "--checksum"],
}


def prompts_of(lengths: Sequence[int], tokens: list[int]) -> list[list[int]]:
    """Slices from different places of the text, so that no two prompts share a beginning."""
    return [tokens[37 * i : 37 * i + length] for i, length in enumerate(lengths)]


def generate(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    """What transformers makes of it, greedily."""
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=OUTPUT_TOKENS,
            do_sample=False,
        )
    return [int(token) for token in output[0, len(prompt) :]]


async def complete(
    url: str, prompts: list[list[int]], concurrency: int, **options: object
) -> list[list[int]]:
    """The tokens that the server answers each prompt with."""
    gate = asyncio.Semaphore(concurrency)
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

        async def one(prompt: list[int]) -> list[int]:
            async with gate:
                answer = await client.completions.create(
                    model="SmolLM2-135M-Instruct",
                    prompt=prompt,
                    max_tokens=OUTPUT_TOKENS,
                    extra_body={"ignore_eos": True, "return_token_ids": True, **options},
                )
            return list(answer.choices[0].model_extra["token_ids"])

        return list(await asyncio.gather(*(one(prompt) for prompt in prompts)))


def check_greedy(url: str, prompts: list[list[int]], expected: list[list[int]]) -> None:
    for concurrency in (1, CONCURRENCY):
        assert asyncio.run(complete(url, prompts, concurrency, temperature=0)) == expected


def sampled(url: str, prompts: list[list[int]]) -> list[list[int]]:
    options = {"temperature": 0.8, "top_p": 0.9, "top_k": 50, "seed": 7, "presence_penalty": 0.5}
    return asyncio.run(complete(url, prompts, CONCURRENCY, **options))


@pytest.fixture(scope="module")
def few(
    english_tokens: list[int], reference: PreTrainedModel
) -> tuple[list[list[int]], list[list[int]]]:
    prompts = prompts_of(FEW_LENGTHS, english_tokens)
    return prompts, [generate(reference, prompt) for prompt in prompts]


def test_split_over_shared_memory(
    split_server: str, few: tuple[list[list[int]], list[list[int]]]
) -> None:
    check_greedy(split_server, *few)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_other_clusters(
    cluster: str, split_server: str, few: tuple[list[list[int]], list[list[int]]]
) -> None:
    """Greedy as transformers; sampled as the split over shared memory."""
    with running_server(*CLUSTERS[cluster]) as url:
        check_greedy(url, *few)
        assert sampled(url, few[0]) == sampled(split_server, few[0])


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_many_lengths_everywhere(
    english_tokens: list[int], reference: PreTrainedModel, split_server: str
) -> None:
    prompts = prompts_of(MANY_LENGTHS, english_tokens)
    expected = [generate(reference, prompt) for prompt in prompts]
    check_greedy(split_server, prompts, expected)
    draws = sampled(split_server, prompts)
    for arguments in CLUSTERS.values():
        with running_server(*arguments) as url:
            check_greedy(url, prompts, expected)
            assert sampled(url, prompts) == draws
