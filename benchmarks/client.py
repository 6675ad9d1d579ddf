"""A client that times every token it is streamed."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

REQUEST_LIMIT_S = 600.0


@dataclass
class Timing:
    """When the tokens of one request came, in seconds after it was sent."""

    start_s: float = 0.0
    """When it was sent, on ``time.perf_counter``."""
    token_s: list[float] = field(default_factory=list)
    end_s: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the answer."""

    @property
    def ttft_s(self) -> float:
        return self.token_s[0]

    @property
    def gaps_s(self) -> list[float]:
        """Times between tokens (TBT)."""
        return [b - a for a, b in zip(self.token_s, self.token_s[1:], strict=False)]

    @property
    def second_token_s(self) -> float:
        return self.token_s[1] - self.token_s[0]


async def stream_completion(
    client: httpx.AsyncClient, base_url: str, prompt: list[int], output_tokens: int
) -> Timing:
    """Stream exactly ``output_tokens`` greedy tokens after ``prompt``.

    Raises:
        RuntimeError: the server sent an error, or another number of tokens.
    """
    body = {
        "prompt": prompt,
        "max_tokens": output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    start = time.perf_counter()
    timing = Timing(start)
    async with client.stream("POST", f"{base_url}/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread()).decode()}")
        timing.headers = response.headers
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            now = time.perf_counter() - start
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            # Text may lag behind tokens (bytes of one character, a possible stop string), so
            # tokens are counted by the usage that comes with each event.
            new = event["usage"]["completion_tokens"] - len(timing.token_s)
            timing.token_s += [now] * new
    timing.end_s = time.perf_counter() - start
    if len(timing.token_s) != output_tokens:
        raise RuntimeError(f"{len(timing.token_s)} tokens came, {output_tokens} were asked for")
    return timing


def new_client(connections: int = 512) -> httpx.AsyncClient:
    """A client with room for ``connections`` concurrent streams."""
    return httpx.AsyncClient(
        timeout=REQUEST_LIMIT_S, limits=httpx.Limits(max_connections=connections)
    )


async def read_metrics(client: httpx.AsyncClient, base_url: str) -> dict[str, float]:
    """Sums of all metrics, by name without prefix, over all labels."""
    text = (await client.get(f"{base_url}/metrics")).text
    sums: dict[str, float] = {}
    for name, value in re.findall(r"^splitwise:(\w+)(?:\{.*\})? (\S+)$", text, re.MULTILINE):
        sums[name] = sums.get(name, 0.0) + float(value)
    return sums
