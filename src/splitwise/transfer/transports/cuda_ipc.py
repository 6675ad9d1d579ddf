"""Same host, caches on CUDA devices: the sender copies into the receiver's cache on the device.

1. Once the handshake is over the receiver sends IPC handles of its cache's regions; the sender
   opens them.
2. ``layer_ready`` records an event on the engine's current stream: the fence.
3. A put queues its copies on a side stream that waits for the fence, so the engine's own kernels
   run on, and ends when the device has passed them, also where it fails half way: Stopped is never
   said before. Long runs of blocks are copied as they are; all others in one gather and one scatter
   for every few megabytes, by way of a buffer on the other device where the two are not the same.

Both processes must see the device under CUDA_VISIBLE_DEVICES; it is named by its UUID. The cache
must come from CUDA's plain allocator (no expandable segments).
"""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from splitwise.transfer.device_blocks import DeviceBlocks, DeviceMemory, DeviceQueue
from splitwise.transfer.errors import LinkError
from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.pairing import LayoutPair
from splitwise.transfer.runs import Run, merge_runs
from splitwise.transfer.transports.base import Fence, Lane, Moved, Stretch, Transport

RUN_BYTES = 2**20
"""A run this long is worth a copy of its own."""
GATHER_BYTES = 16 * 2**20
"""The most that is gathered at once: memory that the engine must leave free."""


class _Handle(msgspec.Struct, array_like=True, frozen=True):
    """What torch needs to open another process's storage (``UntypedStorage._share_cuda_``)."""

    device_uuid: str
    memory: bytes
    storage_bytes: int
    storage_offset_bytes: int
    counter: bytes
    counter_offset: int
    event: bytes
    event_needed: bool
    tensor_offset_bytes: int


def export(memory: DeviceMemory) -> list[bytes]:
    """Receiver: a handle of each region."""
    return [_export(tensor) for tensor in memory.tensors]


def open_regions(handles: Sequence[bytes]) -> list[Any]:
    """Sender: the receiver's regions as flat uint8 tensors on this process's view of the device.

    Raises:
        LinkError: they are no handles, or of a device that this process does not see.
    """
    return [_open(handle) for handle in handles]


class CudaIpcTransport(Transport):
    """Copies from ``memory`` into the receiver's ``regions``."""

    name = "cuda_ipc"

    def __init__(
        self,
        memory: DeviceMemory,
        layout: CacheLayout,
        regions: Sequence[Any],
        their_layout: CacheLayout,
    ) -> None:
        pair = LayoutPair(layout, their_layout)
        self.source = self.here = DeviceBlocks(memory.tensors, layout, pair.at_source)
        self.there = DeviceBlocks(regions, their_layout, pair.at_target)
        self.block_bytes = pair.block_bytes
        self._here = DeviceQueue(self.here.device)
        is_one = self.here.device == self.there.device
        self._there = self._here if is_one else DeviceQueue(self.there.device)

    def lane(self, number: int, target: Sequence[int]) -> Lane:
        return partial(self._stretch, target)

    @contextlib.asynccontextmanager
    async def copying(self, fence: Fence) -> AsyncIterator[None]:
        """Queue copies behind ``fence`` within; on leaving, also by an exception, the devices have
        passed them."""
        async with self._there.to_the_end(), self._here.to_the_end(fence):
            yield

    def copy_run(self, layer: int, run: Run) -> None:
        strips = zip(self.here.strips(layer), self.there.strips(layer), strict=True)
        for source, target in strips:
            target[run.target : run.target + run.length].copy_(
                source[run.source : run.source + run.length], non_blocking=True
            )

    def copy_batch(self, layer: int, batch: "_Batch") -> None:
        """Blocks from all over the cache: gathered, taken across, scattered."""
        for strip in range(len(self.here.strips(layer))):
            packed = self.here.gather(layer, strip, batch.source)
            if self._there is not self._here:
                # torch's copy between devices orders the current streams of both.
                packed = packed.to(self.there.device, non_blocking=True)
            with self._there.on():
                self.there.scatter(layer, strip, batch.target, packed)

    def close(self) -> None:
        for queue in {self._here, self._there}:
            queue.close()
        del self.here, self.there, self.source

    def _stretch(self, target: Sequence[int], first: int, source: Sequence[int]) -> Stretch:
        long: list[Run] = []
        others: list[Run] = []
        for run in merge_runs(source, target[first : first + len(source)]):
            is_long = run.length * max(self.block_bytes) >= RUN_BYTES
            (long if is_long else others).append(run)
        most = max(1, GATHER_BYTES // max(self.block_bytes))
        return _Stretch(self, long, self._batches(others, most))

    def _batches(self, runs: Sequence[Run], most: int) -> "list[_Batch]":
        source = [run.source + block for run in runs for block in range(run.length)]
        target = [run.target + block for run in runs for block in range(run.length)]
        with self._there.on(), self._here.on():
            return [
                _Batch(
                    self.here.table(source[at : at + most]),
                    self.there.table(target[at : at + most]),
                    len(source[at : at + most]),
                )
                for at in range(0, len(source), most)
            ]


@dataclass(frozen=True)
class _Batch:
    """Blocks that are copied together: their tables on either device."""

    source: Any
    target: Any
    count: int


class _Stretch(Stretch):
    def __init__(
        self, transport: CudaIpcTransport, runs: Sequence[Run], batches: Sequence[_Batch]
    ) -> None:
        self._transport = transport
        self._runs = runs
        self._batches = batches

    async def put(self, layer: int, fence: Fence, moved: Moved) -> int:
        async with self._transport.copying(fence):
            for run in self._runs:
                self._transport.copy_run(layer, run)
            for batch in self._batches:
                self._transport.copy_batch(layer, batch)
        blocks = sum(run.length for run in self._runs) + sum(b.count for b in self._batches)
        moved(blocks * self._transport.block_bytes[layer])
        return len(self._runs) + len(self._batches)


def _export(tensor: Any) -> bytes:
    device, memory_handle, nbytes, offset, counter, counter_offset, event, event_needed = (
        tensor.untyped_storage()._share_cuda_()
    )
    handle = _Handle(
        device_uuid=_uuid(device),
        memory=memory_handle,
        storage_bytes=nbytes,
        storage_offset_bytes=offset,
        counter=counter,
        counter_offset=counter_offset,
        event=event,
        event_needed=event_needed,
        tensor_offset_bytes=tensor.storage_offset(),
    )
    return msgspec.msgpack.encode(handle)


def _open(encoded: bytes) -> Any:
    import torch

    try:
        handle = msgspec.msgpack.decode(encoded, type=_Handle)
    except msgspec.MsgspecError as error:
        raise LinkError(f"bad CUDA handle: {error}") from error
    uuids = [_uuid(index) for index in range(torch.cuda.device_count())]
    if handle.device_uuid not in uuids:
        raise LinkError(
            f"the receiver's device {handle.device_uuid} is not among this machine's {uuids}: "
            "make it visible (CUDA_VISIBLE_DEVICES)"
        )
    index = uuids.index(handle.device_uuid)
    torch.cuda.init()  # type: ignore[no-untyped-call]
    storage = torch.UntypedStorage._new_shared_cuda(
        index,
        handle.memory,
        handle.storage_bytes,
        handle.storage_offset_bytes,
        handle.counter,
        handle.counter_offset,
        handle.event,
        handle.event_needed,
    )
    flat = torch.empty(0, dtype=torch.uint8, device=f"cuda:{index}")
    return flat.set_(storage)[handle.tensor_offset_bytes :]


def _uuid(index: int) -> str:
    import torch

    return str(torch.cuda.get_device_properties(index).uuid)
