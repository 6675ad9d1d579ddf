"""Nothing is leaked by clients that cancel, disconnect, or ask for nonsense."""

import asyncio
import random
import re

import httpx
from shared_names import no_shared_name_left

from splitwise.launch.local_server import running_server

WAIT_S = 60


async def used_shares(client: httpx.AsyncClient, url: str) -> dict[str, float]:
    """The share of cache blocks in use and the requests held, by machine."""
    text = (await client.get(f"{url}/metrics")).text
    pattern = r'^splitwise:(num_\w+|kv_\w+)\{machine="([^"]+)".*\} (\S+)$'
    states = re.findall(pattern, text, re.MULTILINE)
    assert states, "no machine reports"
    return {f"{name} of {machine}": float(value) for name, machine, value in states}


async def wait_until_idle(client: httpx.AsyncClient, url: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while any((await used_shares(client, url)).values()):
            await asyncio.sleep(0.5)


async def one_request(client: httpx.AsyncClient, url: str, rng: random.Random) -> str:
    """A request that is read to its end, left at a random moment, or bad."""
    prompt = [rng.randrange(4, 500) for _ in range(rng.choice([1, 9, 40, 130]))]
    body: dict[str, object] = {"prompt": prompt, "max_tokens": rng.randrange(1, 30)}
    body["stream"] = rng.random() < 0.6
    kind = rng.choice(["whole", "leave", "leave", "bad"])
    if kind == "bad":
        body[rng.choice(["max_tokens", "temperature", "seed", "n"])] = rng.choice(["x", {}, [1]])
        response = await client.post(f"{url}/v1/completions", json=body)
        assert response.status_code == 400, response.text
    elif kind == "whole":
        response = await client.post(f"{url}/v1/completions", json=body)
        assert response.status_code == 200, response.text
    else:
        try:
            async with asyncio.timeout(rng.uniform(0.0, 1.5)):
                async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
                    async for _ in response.aiter_bytes():
                        if rng.random() < 0.2:
                            break
        except TimeoutError:
            return "left"
    return kind


async def churn(url: str, requests: int) -> None:
    rng = random.Random(11)
    gate = asyncio.Semaphore(16)
    async with httpx.AsyncClient(timeout=300) as client:

        async def gated(seed: int) -> str:
            async with gate:
                return await one_request(client, url, random.Random(seed))

        kinds = await asyncio.gather(*(gated(rng.randrange(2**31)) for _ in range(requests)))
        assert {"whole", "left", "bad"} <= set(kinds)
        await wait_until_idle(client, url)
        assert (await client.get(f"{url}/health")).status_code == 200


def test_every_block_comes_back() -> None:
    times = ("--null-iteration-s=0.02", "--null-prompt-token-s=0.001")  # left in every phase
    transfers = ("--transport=shared_memory", "--one-piece-below=64", "--checksum")
    with (
        no_shared_name_left(),
        running_server("--engine=null", *times, *transfers) as url,
    ):
        asyncio.run(churn(url, requests=500))
