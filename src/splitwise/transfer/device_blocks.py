"""The blocks of a cache on a device, as one end of a pair sees them, and the stream to move them.

torch is imported here and in ``transports/cuda_ipc`` alone, and only when a cache lies on a device.
All of it works on tensors in host memory, too: then nothing is queued, and there is nothing to wait
for.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, cast

from splitwise.transfer.host_blocks import HostBlocks, Runs
from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.memory import CacheMemory, HostMemory
from splitwise.transfer.pairing import Place

_WORDS = {8: "int64", 4: "int32", 2: "int16", 1: "uint8"}


class DeviceMemory(Protocol):
    """What a transfer needs of an engine's cache on a device."""

    nbytes: int
    device: str
    tensors: Sequence[Any]
    """One a region: one-dimensional, uint8, contiguous."""

    def close(self) -> None: ...


class DeviceBlocks:
    """``places`` is what moves at this end, by layer and strip."""

    def __init__(
        self, tensors: Sequence[Any], layout: CacheLayout, places: Sequence[Sequence[Place]]
    ) -> None:
        self.device = tensors[0].device
        self.places = places
        self._strips = [
            [_rows(tensors[place.region], layout.blocks, place) for place in layer]
            for layer in places
        ]

    def strips(self, layer: int) -> list[Any]:
        """The layer's strips, each ``[blocks, words]``."""
        return self._strips[layer]

    def table(self, blocks: Sequence[int]) -> Any:
        """A block table as an index on the device."""
        import torch

        return torch.tensor(blocks, dtype=torch.int64).to(self.device)

    def gather(self, layer: int, strip: int, table: Any) -> Any:
        """Copy the strip of these blocks together: uint8, one after the other."""
        import torch

        return self._strips[layer][strip].index_select(0, table).view(torch.uint8).flatten()

    def scatter(self, layer: int, strip: int, table: Any, packed: Any) -> None:
        """Put what ``gather`` gave of as many blocks at the other end into these."""
        rows = self._strips[layer][strip]
        rows.index_copy_(0, table, packed.view(rows.dtype).view(len(table), -1))

    def by_strip(self, layer: int, runs: Runs) -> list[list[memoryview]]:
        """The bytes, read through host memory."""
        import torch

        return [
            [
                memoryview(rows[first : first + count].contiguous().view(torch.uint8).cpu().numpy())
                for first, count in runs
            ]
            for rows in self._strips[layer]
        ]


def blocks_of(
    memory: CacheMemory, layout: CacheLayout, places: Sequence[Sequence[Place]]
) -> HostBlocks | DeviceBlocks:
    """What moves at this end, wherever the cache lies."""
    if memory.device.startswith("cuda"):
        return DeviceBlocks(cast(DeviceMemory, memory).tensors, layout, places)
    return HostBlocks(cast(HostMemory, memory), layout, places)


class DeviceQueue:
    """A stream beside the engine's own: what is queued ``on`` it waits for a fence, not for all
    that the engine has queued since."""

    def __init__(self, device: Any) -> None:
        import torch

        self._stream: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        # Events of one stream pass in order, so one waiting thread serves all.
        self._waiter = ThreadPoolExecutor(1, thread_name_prefix="kv-device-wait")

    @contextlib.contextmanager
    def on(self, *fences: object) -> Iterator[None]:
        """Queue here what is done within, behind ``fences`` (events; None is none)."""
        import torch

        if self._stream is None:
            yield
            return
        for fence in fences:
            if fence is not None:
                self._stream.wait_event(fence)
        with torch.cuda.stream(self._stream):
            yield

    @contextlib.asynccontextmanager
    async def to_the_end(self, *fences: object) -> AsyncIterator[None]:
        """``on``, and on leaving, also by an exception, the device has passed what was queued."""
        try:
            with self.on(*fences):
                yield
        finally:
            await self._passed()

    async def _passed(self) -> None:
        import torch

        if self._stream is None:
            return
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        try:
            await asyncio.get_running_loop().run_in_executor(self._waiter, event.synchronize)
        except asyncio.CancelledError:
            event.synchronize()  # whoever cancels must not find the device still at it
            raise

    def close(self) -> None:
        """Wait for what is queued, here."""
        if self._stream is not None:
            self._stream.synchronize()
        self._waiter.shutdown()


def queue_of(memory: DeviceMemory) -> DeviceQueue:
    return DeviceQueue(memory.tensors[0].device)


def record_fence(device: str) -> object:
    """Engine's thread: an event behind everything queued on its current stream so far."""
    import torch

    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(torch.device(device)))
    return event


def _rows(tensor: Any, blocks: int, place: Place) -> Any:
    """A strip as ``[blocks, words]``, in the longest words that divide it: kernels copy by word."""
    import torch

    word = math.gcd(
        8, place.offset_bytes, place.stride_bytes, place.nbytes, tensor.storage_offset()
    )
    usable = len(tensor) - len(tensor) % word
    words = tensor[:usable].view(getattr(torch, _WORDS[word]))
    return words.as_strided(
        (blocks, place.nbytes // word),
        (place.stride_bytes // word, 1),
        words.storage_offset() + place.offset_bytes // word,
    )
