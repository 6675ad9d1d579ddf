"""When no machine took requests at all: pauses that no scheduler could have spared the clients."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

PERIOD_S = 0.1


@dataclass
class Outages:
    """Spans on ``time.perf_counter`` in which ``/health`` said so."""

    spans: list[tuple[float, float]] = field(default_factory=list)

    def overlap_s(self, begin_s: float, end_s: float) -> float:
        """How much of that time they cover."""
        common = (min(end, end_s) - max(begin, begin_s) for begin, end in self.spans)
        return sum(max(0.0, lasts_s) for lasts_s in common)

    @property
    def longest_s(self) -> float:
        return max((end - begin for begin, end in self.spans), default=0.0)


@asynccontextmanager
async def watched_outages(port: int) -> AsyncIterator[Outages]:
    outages = Outages()
    watch = asyncio.create_task(_watch(port, outages))
    try:
        yield outages
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def _watch(port: int, outages: Outages) -> None:
    was_out = False
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        while True:
            is_out = (await client.get("/health")).status_code != 200
            now_s = time.perf_counter()
            if is_out and was_out:
                outages.spans[-1] = (outages.spans[-1][0], now_s)
            elif is_out:
                outages.spans.append((now_s, now_s))
            was_out = is_out
            await asyncio.sleep(PERIOD_S)
