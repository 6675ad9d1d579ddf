"""The figures that a client and the server both report of a load, and where they part."""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import httpx

from client import read_metrics

POLL_S = 0.05
EXACT = ("requests", "tokens_per_request")
TIMES = ("ttft_s", "itl_s", "e2e_s")
MOST_PERCENT = 5.0
LEAST_S = 0.001
"""Two times that differ by less agree: HTTP, the kernel and the client's own work lie between."""


@dataclass(frozen=True)
class Load:
    """What every client is told to do: ``concurrency`` requests under way, ``requests`` in all."""

    url: str
    model: str
    tokenizer: Path
    vocab_size: int
    chat: bool
    requests: int
    concurrency: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Figures:
    """A count, means, and rates over the whole run."""

    requests: int
    tokens_per_request: float
    ttft_s: float
    itl_s: float
    e2e_s: float
    output_tokens_per_s: float
    requests_per_s: float


async def observed(
    http: httpx.AsyncClient, url: str, run: Awaitable[Figures]
) -> tuple[Figures, Figures]:
    """Await a client's ``run``: its figures, and the server's of the same requests.

    The server's are differences of its counters and of its histograms' sums and counts, so the
    means are exact. It does not say how long the run took: that is read off its counters as they
    move, to ``POLL_S`` at either end.
    """
    before = await read_metrics(http, url)
    span = _Span(before)
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(span.watch(http, url))
        theirs = await run
        watching.cancel()
    after = await read_metrics(http, url)
    span.look(after)
    return theirs, _server_figures(before, after, span.duration_s)


def compare(theirs: Figures, server: Figures) -> list[dict[str, Any]]:
    """A row a figure. ``EXACT`` ones must be equal, all others within ``MOST_PERCENT``; times may
    also be within ``LEAST_S``."""
    return [
        _row(field.name, getattr(theirs, field.name), getattr(server, field.name))
        for field in fields(Figures)
    ]


def _row(name: str, theirs: float, server: float) -> dict[str, Any]:
    percent = (theirs / server - 1) * 100
    near = name in TIMES and abs(theirs - server) <= LEAST_S
    agrees = theirs == server if name in EXACT else near or abs(percent) <= MOST_PERCENT
    row = {"figure": name, "client": theirs, "server": server}
    return row | {"difference_percent": percent, "agrees": agrees}


class _Span:
    """When the server's first request came and its last token went, by its counters."""

    def __init__(self, metrics: dict[str, float]) -> None:
        self._prompts = metrics["prompt_tokens_total"]
        self._tokens = metrics["generation_tokens_total"]
        self._started_s = 0.0
        self._ended_s = 0.0

    @property
    def duration_s(self) -> float:
        return self._ended_s - self._started_s

    def look(self, metrics: dict[str, float]) -> None:
        now = time.perf_counter()
        if not self._started_s and metrics["prompt_tokens_total"] > self._prompts:
            self._started_s = now
        if metrics["generation_tokens_total"] > self._tokens:
            self._tokens = metrics["generation_tokens_total"]
            self._ended_s = now

    async def watch(self, http: httpx.AsyncClient, url: str) -> None:
        while True:
            self.look(await read_metrics(http, url))
            await asyncio.sleep(POLL_S)


def _server_figures(
    before: dict[str, float], after: dict[str, float], duration_s: float
) -> Figures:
    def moved(name: str) -> float:
        return after[name] - before[name]

    def mean(name: str) -> float:
        return moved(f"{name}_seconds_sum") / moved(f"{name}_seconds_count")

    requests = int(moved("e2e_request_latency_seconds_count"))
    tokens = int(moved("generation_tokens_total"))
    return Figures(
        requests,
        tokens / requests,
        mean("time_to_first_token"),
        mean("inter_token_latency"),
        mean("e2e_request_latency"),
        tokens / duration_s,
        requests / duration_s,
    )
