"""Same host, cache on a CUDA device: the sender copies into the receiver's cache on the device.

1. The receiver's Welcome carries an IPC handle of its cache; the sender opens it.
2. ``layer_ready`` records an event on the engine's current stream: the fence.
3. A put queues the copies on a side stream that waits for the fence, so the engine's own kernels
   run on, and ends when the device has passed them.

Both processes must see the device under CUDA_VISIBLE_DEVICES; it is named by its UUID. The cache
must come from CUDA's plain allocator (no expandable segments). torch is imported here alone, and
only when a cache lies on a device.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import msgspec

from splitwise.transfer.errors import LinkError
from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.runs import merge_runs
from splitwise.transfer.transports.base import Fence, Lane, Moved, Transport


class DeviceMemory(Protocol):
    """What this transport needs of an engine's cache on a device."""

    nbytes: int
    device: str
    tensor: Any
    """One-dimensional, uint8, contiguous, over the whole cache."""

    def close(self) -> None: ...


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


def export(memory: DeviceMemory) -> bytes:
    """Receiver: the handle that the Welcome carries."""
    tensor = memory.tensor
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


def record_fence(device: str) -> Fence:
    """Engine's thread: an event behind everything queued on its current stream so far."""
    import torch

    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(torch.device(device)))
    return event


class CudaIpcTransport(Transport):
    """Copies from ``memory`` into the cache behind ``handle``."""

    name = "cuda_ipc"

    def __init__(
        self, memory: DeviceMemory, layout: CacheLayout, handle: bytes, their_layout: CacheLayout
    ) -> None:
        import torch

        self._source = memory.tensor[: layout.total_bytes].view(layout.layers, layout.layer_bytes)
        theirs = _open(handle)
        self._target = theirs[: their_layout.total_bytes].view(
            their_layout.layers, their_layout.layer_bytes
        )
        self._stream = torch.cuda.Stream(  # type: ignore[no-untyped-call]
            device=self._source.device
        )
        self._block_bytes = layout.block_bytes
        # Events of one stream pass in order, so one waiting thread serves all puts.
        self._waiter = ThreadPoolExecutor(1, thread_name_prefix="kv-cuda-wait")

    def lane(self, number: int, source: Sequence[int], target: Sequence[int]) -> Lane:
        size = self._block_bytes
        copies = [
            (run.source * size, run.target * size, run.length * size)
            for run in merge_runs(source, target)
        ]
        return _Lane(self, copies)

    async def copy(self, layer: int, copies: Sequence[tuple[int, int, int]], fence: Fence) -> None:
        """Copy (source offset, target offset, bytes) spans of a layer once ``fence`` has passed."""
        import torch

        source, target = self._source[layer], self._target[layer]
        landed = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(fence)  # type: ignore[arg-type]
            for here, there, nbytes in copies:
                target[there : there + nbytes].copy_(
                    source[here : here + nbytes], non_blocking=True
                )
            landed.record(self._stream)
        await asyncio.get_running_loop().run_in_executor(self._waiter, landed.synchronize)

    def close(self) -> None:
        self._stream.synchronize()
        self._waiter.shutdown()
        del self._source, self._target


class _Lane(Lane):
    def __init__(self, transport: CudaIpcTransport, copies: Sequence[tuple[int, int, int]]) -> None:
        self._transport = transport
        self._copies = copies

    async def put(self, layer: int, fence: Fence, moved: Moved) -> int:
        await self._transport.copy(layer, self._copies, fence)
        moved(sum(nbytes for _, _, nbytes in self._copies))
        return len(self._copies)


def _open(encoded: bytes) -> Any:
    """The receiver's cache as a flat uint8 tensor on this process's view of the device."""
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
