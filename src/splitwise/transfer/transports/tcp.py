"""Between any two hosts: several parallel streams beside the control link.

1. The sender cuts a layer's block table into stripes, one a stream at most, and sends each as a
   piece: a header that names entries of the table, then their bytes, straight from its cache.
2. The receiver looks up where these entries lie in its own cache and receives straight into them.
   It alone writes, and a piece can name nothing but entries of a granted table, so a sender
   cannot reach other blocks. Pieces of a transfer that has ended are read and thrown away.
"""

import asyncio
import itertools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from splitwise.transfer.channel import Channel
from splitwise.transfer.incoming import Incoming
from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.memory import HostMemory
from splitwise.transfer.runs import contiguous
from splitwise.transfer.transports.base import Fence, Lane, Moved, Transport

PIECE = struct.Struct("!QIII")
"""Transfer number, layer, first entry of the block table, entries."""
STRIPE_BYTES = 256 * 2**10
"""A stripe is not worth a stream of its own below this."""
PIECE_BYTES = 2**20
"""A longer stripe goes in several pieces, between which the sender can stop."""
_SCRATCH_BYTES = 2**20


class TcpTransport(Transport):
    """Sends pieces over ``streams``, which it owns."""

    name = "tcp"

    def __init__(self, memory: HostMemory, layout: CacheLayout, streams: Sequence[Channel]) -> None:
        self._cache = memory.buffer[: layout.total_bytes]
        self._layout = layout
        self._streams = streams
        self._turns = [asyncio.Lock() for _ in streams]
        self._next = 0

    def lane(self, number: int, source: Sequence[int], target: Sequence[int]) -> Lane:
        return _Lane(self, number, self._layout, source, len(self._streams))

    def close(self) -> None:
        for stream in self._streams:
            stream.close()

    async def send(self, header: bytes, spans: Sequence[tuple[int, int]]) -> None:
        """Send one piece over the next stream: the bytes at each (offset, length) of the cache."""
        self._next = (self._next + 1) % len(self._streams)
        turn, stream = self._turns[self._next], self._streams[self._next]
        async with turn:
            await stream.send([header, *(self._cache[at : at + size] for at, size in spans)])


@dataclass(frozen=True)
class _Piece:
    """``count`` entries of the block table from ``first`` on, as runs (first block, length)."""

    first: int
    count: int
    runs: list[tuple[int, int]]


class _Lane(Lane):
    def __init__(
        self,
        transport: TcpTransport,
        number: int,
        layout: CacheLayout,
        source: Sequence[int],
        streams: int,
    ) -> None:
        self._transport = transport
        self._number = number
        self._layout = layout
        self._stripes = [
            [
                _Piece(at, size, contiguous(source[at : at + size]))
                for at, size in _pieces(first, count, layout.block_bytes)
            ]
            for first, count in _cut(len(source), layout.block_bytes, streams)
        ]

    async def put(self, layer: int, fence: Fence, moved: Moved) -> int:
        if len(self._stripes) == 1:
            return await self._send(layer, self._stripes[0], moved)
        sent = await asyncio.gather(*(self._send(layer, stripe, moved) for stripe in self._stripes))
        return sum(sent)

    async def _send(self, layer: int, stripe: Sequence["_Piece"], moved: Moved) -> int:
        """Send a stripe, or as much of it as ``moved`` wants; returns in how many pieces."""
        size = self._layout.block_bytes
        for sent, piece in enumerate(stripe, start=1):
            spans = [(self._layout.offset_bytes(layer, block), n * size) for block, n in piece.runs]
            header = PIECE.pack(self._number, layer, piece.first, piece.count)
            await self._transport.send(header, spans)
            if not moved(piece.count * size):
                return sent
        return len(stripe)


async def receive_pieces(
    channel: Channel,
    memory: HostMemory,
    layout: CacheLayout,
    find: Callable[[int], Incoming | None],
    landed: Callable[[Incoming], None],
    tell_period_s: float,
) -> None:
    """Receive pieces from one stream until the sender closes it.

    ``find`` gives the live transfer of a number, None for one that has ended, and raises
    LinkError for a number never granted. ``landed`` is called after each piece.
    ``tell_period_s`` is how often the sender hears that it lands.

    Raises:
        LinkLost: the stream has ended.
        LinkError: the sender broke the protocol.
    """
    header = memoryview(bytearray(PIECE.size))
    scratch = memoryview(bytearray(_SCRATCH_BYTES))
    while True:
        await channel.receive_into(header)
        number, layer, first, count = PIECE.unpack(header)
        incoming = find(number)
        if incoming is None or incoming.pieces is None:
            await _drain(channel, count * layout.block_bytes, scratch)
            continue
        for at, size in incoming.pieces.place(layer, first, count):
            view = memory.buffer[at : at + size]
            await _receive_span(channel, view, incoming, scratch, tell_period_s)
        if incoming.outcome is None:
            incoming.pieces.landed(count)
            landed(incoming)
        # A stream that always has data must not keep the others from being read.
        await asyncio.sleep(0)


async def _receive_span(
    channel: Channel,
    view: memoryview,
    incoming: Incoming,
    scratch: memoryview,
    tell_period_s: float,
) -> None:
    """Fill ``view``, but only while the transfer lives: asked again before every write."""
    while len(view):
        target = view if incoming.outcome is None else scratch[: len(view)]
        received = channel.try_receive(target)
        if not received:
            await channel.until_readable()
        elif incoming.outcome is None:
            incoming.moved(received, tell_period_s)
        view = view[received:]


async def _drain(channel: Channel, nbytes: int, scratch: memoryview) -> None:
    while nbytes:
        received = channel.try_receive(scratch[:nbytes])
        if not received:
            await channel.until_readable()
        nbytes -= received


def _pieces(first: int, count: int, block_bytes: int) -> list[tuple[int, int]]:
    """Cut a stripe into (first, count) pieces that can be sent in one go."""
    most = max(1, PIECE_BYTES // block_bytes)
    return [(at, min(most, first + count - at)) for at in range(first, first + count, most)]


def _cut(entries: int, block_bytes: int, streams: int) -> list[tuple[int, int]]:
    """Cut a block table into (first, count) stripes of nearly equal length."""
    wanted = max(1, min(streams, entries, entries * block_bytes // STRIPE_BYTES))
    bounds = [entries * index // wanted for index in range(wanted + 1)]
    return [(first, after - first) for first, after in itertools.pairwise(bounds)]
