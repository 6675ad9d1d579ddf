"""Same host, cache in host memory: the sender writes straight into the receiver's cache.

The receiver hands its memory's descriptor over the link (SCM_RIGHTS) once the handshake is over;
the sender maps it. numpy does the copying, because it lets go of the interpreter lock meanwhile:
the engine's thread goes on.
"""

import asyncio
import socket
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from splitwise.transfer.channel import Channel
from splitwise.transfer.errors import LinkError
from splitwise.transfer.host_blocks import HostBlocks
from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.memory import HostMemory
from splitwise.transfer.pairing import LayoutPair
from splitwise.transfer.runs import Run, cut_runs, merge_runs
from splitwise.transfer.transports.base import Fence, Lane, Moved, Stretch, Transport

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
        self,
        memory: HostMemory,
        layout: CacheLayout,
        theirs: HostMemory,
        their_layout: CacheLayout,
    ) -> None:
        pair = LayoutPair(layout, their_layout)
        self.source = source = HostBlocks(memory, layout, pair.at_source)
        target = HostBlocks(theirs, their_layout, pair.at_target)
        self._copies = [
            [
                _strip(*arrays)
                for arrays in zip(source.arrays(layer), target.arrays(layer), strict=True)
            ]
            for layer in range(pair.layers)
        ]
        self._most = max(1, COPY_BYTES // max(pair.block_bytes))
        self._theirs = theirs

    def lane(self, number: int, target: Sequence[int]) -> Lane:
        return partial(self._stretch, target)

    def close(self) -> None:
        del self._copies
        self._theirs.close()

    def _stretch(self, target: Sequence[int], first: int, source: Sequence[int]) -> Stretch:
        runs = merge_runs(source, target[first : first + len(source)])
        return _Stretch(self._copies, cut_runs(runs, self._most))


class _Stretch(Stretch):
    def __init__(self, strips: list[list[tuple[Bytes, Bytes, int]]], runs: Sequence[Run]) -> None:
        self._strips = strips
        self._runs = runs

    async def put(self, layer: int, fence: Fence, moved: Moved) -> int:
        copies = since_told_bytes = 0
        for source, target, size in self._strips[layer]:
            for run in self._runs:
                here = source[run.source * size : (run.source + run.length) * size]
                np.copyto(target[run.target * size : (run.target + run.length) * size], here)
                copies += 1
                since_told_bytes += here.size
                if since_told_bytes < COPY_BYTES:
                    continue
                if not moved(since_told_bytes):
                    return copies
                since_told_bytes = 0
                await asyncio.sleep(0)  # lets frames and calls of others in
        moved(since_told_bytes)
        return copies


def _strip(source: Bytes, target: Bytes) -> tuple[Bytes, Bytes, int]:
    """A strip at both ends, and how many entries a block has there: one row, or, where blocks leave
    no gap at either, its bytes, which copy a little faster."""
    if source.flags.c_contiguous and target.flags.c_contiguous:
        return source.reshape(-1), target.reshape(-1), source.shape[1]
    return source, target, 1
