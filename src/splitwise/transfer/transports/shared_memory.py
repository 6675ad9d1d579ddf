"""Same host, cache in host memory: the sender writes straight into the receiver's cache.

The receiver hands its memory's descriptor over the link (SCM_RIGHTS) once the handshake is over;
the sender maps it. numpy does the copying, because it lets go of the interpreter lock meanwhile:
the engine's thread goes on.
"""

import asyncio
import socket
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from splitwise.transfer.channel import Channel
from splitwise.transfer.errors import LinkError
from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.memory import HostMemory
from splitwise.transfer.runs import cut_runs, merge_runs
from splitwise.transfer.transports.base import Fence, Lane, Moved, Transport

COPY_BYTES = 8 * 2**20
"""The most that is copied at once: about a millisecond, in which this thread does nothing else."""
Bytes = npt.NDArray[np.uint8]


def hand_over(channel: Channel, memory: HostMemory) -> None:
    """Receiver: give the sender a descriptor of the cache."""
    socket.send_fds(channel.sock, [b"\0"], [memory.fd])


async def take_over(channel: Channel, nbytes: int) -> HostMemory:
    """Sender: map the cache that the receiver hands over.

    Raises:
        LinkError: none came, or it is not ``nbytes`` long.
    """
    fds = await channel.receive_fds()
    if len(fds) != 1:
        raise LinkError("the receiver handed over no memory")
    try:
        return HostMemory(nbytes, fds[0])
    except ValueError as error:
        raise LinkError(str(error)) from error


class SharedMemoryTransport(Transport):
    """Copies from ``memory`` into ``theirs``, which it owns."""

    name = "shared_memory"

    def __init__(
        self, memory: HostMemory, layout: CacheLayout, theirs: HostMemory, their_layout: CacheLayout
    ) -> None:
        self._source = _by_layer(memory, layout)
        self._target = _by_layer(theirs, their_layout)
        self._theirs = theirs
        self._block_bytes = layout.block_bytes

    def lane(self, number: int, source: Sequence[int], target: Sequence[int]) -> Lane:
        return _Lane(self._source, self._target, self._copies(source, target))

    def close(self) -> None:
        del self._source, self._target
        self._theirs.close()

    def _copies(self, source: Sequence[int], target: Sequence[int]) -> list[tuple[slice, slice]]:
        size = self._block_bytes
        return [
            (
                slice(run.source * size, (run.source + run.length) * size),
                slice(run.target * size, (run.target + run.length) * size),
            )
            for run in cut_runs(merge_runs(source, target), COPY_BYTES // size)
        ]


class _Lane(Lane):
    def __init__(
        self, source: list[Bytes], target: list[Bytes], copies: list[tuple[slice, slice]]
    ) -> None:
        self._source = source
        self._target = target
        self._copies = copies

    async def put(self, layer: int, fence: Fence, moved: Moved) -> int:
        source, target = self._source[layer], self._target[layer]
        since_told_bytes = 0
        for count, (here, there) in enumerate(self._copies, start=1):
            np.copyto(target[there], source[here])
            since_told_bytes += here.stop - here.start
            if since_told_bytes < COPY_BYTES:
                continue
            if not moved(since_told_bytes):
                return count
            since_told_bytes = 0
            await asyncio.sleep(0)  # lets frames and calls of others in
        moved(since_told_bytes)
        return len(self._copies)


def _by_layer(memory: HostMemory, layout: CacheLayout) -> list[Bytes]:
    """The cache as one flat array of bytes a layer."""
    cache = np.frombuffer(memory.buffer, dtype=np.uint8)
    return list(cache[: layout.total_bytes].reshape(layout.layers, layout.layer_bytes))
