"""Host memory through which a cache on a device goes over TCP, a bounded amount of it.

A piece is copied from the device into a buffer while others are on their way, and the other way
round. With a GPU the buffers are pinned, so that the device copies by itself; torch keeps those
that are given back for the next who asks.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from splitwise.transfer.device_blocks import DeviceBlocks, DeviceQueue
from splitwise.transfer.host_blocks import HostBlocks

BUFFERS = 8
"""At a time, at either end of a link."""
BUFFER_BYTES = 2**20
"""Or one block, where that is larger."""


def as_stream_end(
    cache: "HostBlocks | DeviceBlocks", queue: DeviceQueue | None
) -> "HostBlocks | Staging":
    """What a TCP stream reads or writes: the cache itself, where that lies in host memory."""
    if isinstance(cache, HostBlocks):
        return cache
    assert queue is not None
    return Staging(cache, queue)


class Staging:
    """The way between the blocks of ``cache`` and buffers beside them."""

    def __init__(self, cache: DeviceBlocks, queue: DeviceQueue) -> None:
        self.cache = cache
        largest = max(sum(place.nbytes for place in places) for places in cache.places)
        self.buffer_bytes = max(BUFFER_BYTES, largest)
        self._queue = queue
        self._free = asyncio.Semaphore(BUFFERS)

    @contextlib.asynccontextmanager
    async def buffer(self) -> AsyncIterator[Any]:
        """A buffer for a while, as soon as there may be one more."""
        import torch

        async with self._free:
            pin = self.cache.device.type == "cuda"
            yield torch.empty(self.buffer_bytes, dtype=torch.uint8, pin_memory=pin)

    async def load(self, buffer: Any, layer: int, blocks: Sequence[int], fence: object) -> int:
        """Copy what moves of ``blocks`` in a layer into ``buffer``, behind ``fence``; returns how
        many bytes."""
        at = 0
        async with self._queue.to_the_end(fence):
            table = self.cache.table(blocks)
            for strip, place in enumerate(self.cache.places[layer]):
                nbytes = len(blocks) * place.nbytes
                packed = self.cache.gather(layer, strip, table)
                buffer[at : at + nbytes].copy_(packed, non_blocking=True)
                at += nbytes
        return at

    async def store(self, buffer: Any, layer: int, strip: int, blocks: Sequence[int]) -> None:
        """Copy a strip of ``blocks``, which ``buffer`` holds, into the cache."""
        nbytes = len(blocks) * self.cache.places[layer][strip].nbytes
        async with self._queue.to_the_end():
            packed = buffer[:nbytes].to(self.cache.device, non_blocking=True)
            self.cache.scatter(layer, strip, self.cache.table(blocks), packed)
