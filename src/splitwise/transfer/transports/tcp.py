"""Between any two machines: several parallel streams beside the control link.

1. The sender cuts a stretch of the block table into stripes, one a stream at most, and these into
   pieces: a header that names entries of the table, then their bytes, in the pair's order. They
   come straight from a cache in host memory, by way of buffers (``staging``) from one on a device.
2. The receiver looks up where these entries lie in its own cache and receives straight into them,
   or into a buffer first. It alone writes, and a piece can name nothing but entries of a granted
   table, so a sender cannot reach other blocks. Pieces of a transfer that has ended are read and
   thrown away.
"""

import asyncio
import contextlib
import itertools
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from splitwise.transfer.channel import Buffer, Channel
from splitwise.transfer.errors import LinkError
from splitwise.transfer.host_blocks import HostBlocks
from splitwise.transfer.incoming import Incoming
from splitwise.transfer.runs import contiguous
from splitwise.transfer.staging import BUFFER_BYTES, Staging
from splitwise.transfer.transports.base import Fence, Lane, Moved, Stretch, Transport

PIECE = struct.Struct("!QIII")
"""Transfer number, layer, first of the granted blocks, how many."""
STRIPE_BYTES = 256 * 2**10
"""A stripe is not worth a stream of its own below this."""
PIECE_BYTES = BUFFER_BYTES
"""A longer stripe goes in several pieces, between which the sender can stop."""
_SCRATCH_BYTES = 2**20


@dataclass(frozen=True)
class _Piece:
    """What goes to the granted blocks from ``first`` on: blocks here, and these as runs."""

    first: int
    blocks: Sequence[int]
    runs: list[tuple[int, int]]


class TcpTransport(Transport):
    """Sends pieces over ``streams``, which it owns."""

    name = "tcp"

    def __init__(
        self,
        source: HostBlocks | Staging,
        block_bytes: Sequence[int],
        streams: Sequence[Channel],
    ) -> None:
        """``block_bytes``: what moves of a block, by layer."""
        self.block_bytes = block_bytes
        self.source = source.cache if isinstance(source, Staging) else source
        self._from = source
        self._streams = streams
        self._turns = [asyncio.Lock() for _ in streams]
        self._next = 0

    def lane(self, number: int, target: Sequence[int]) -> Lane:
        return partial(self._stretch, number)

    def close(self) -> None:
        for stream in self._streams:
            stream.close()

    def _stretch(self, number: int, first: int, source: Sequence[int]) -> Stretch:
        # Two stripes a stream where one of them is copied from the device while the other is sent.
        most = len(self._streams) * (2 if isinstance(self._from, Staging) else 1)
        largest = max(self.block_bytes)
        stripes = [
            [
                _piece(first + at, source[at : at + size])
                for at, size in _pieces(start, count, largest)
            ]
            for start, count in _cut(len(source), largest, most)
        ]
        return _Stretch(self, number, stripes)

    @contextlib.asynccontextmanager
    async def reading(
        self, layer: int, piece: _Piece, fence: Fence
    ) -> AsyncIterator[Sequence[Buffer]]:
        """The bytes of a piece, for as long as they are needed."""
        if isinstance(self._from, HostBlocks):
            yield self._from.spans(layer, piece.runs)
            return
        async with self._from.buffer() as buffer:
            nbytes = await self._from.load(buffer, layer, piece.blocks, fence)
            yield [memoryview(buffer.numpy())[:nbytes]]

    async def send(self, header: bytes, spans: Sequence[Buffer]) -> None:
        """Send one piece over the next stream."""
        self._next = (self._next + 1) % len(self._streams)
        turn, stream = self._turns[self._next], self._streams[self._next]
        async with turn:
            await stream.send([header, *spans])


class _Stretch(Stretch):
    def __init__(
        self, transport: TcpTransport, number: int, stripes: Sequence[Sequence[_Piece]]
    ) -> None:
        self._transport = transport
        self._number = number
        self._stripes = stripes

    async def put(self, layer: int, fence: Fence, moved: Moved) -> int:
        if len(self._stripes) == 1:
            return await self._send(layer, self._stripes[0], fence, moved)
        work = [self._send(layer, stripe, fence, moved) for stripe in self._stripes]
        sent = 0
        for outcome in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome  # now that no other reads the cache any more
            sent += outcome
        return sent

    async def _send(self, layer: int, stripe: Sequence[_Piece], fence: Fence, moved: Moved) -> int:
        """Send a stripe, or as much of it as ``moved`` wants; returns in how many pieces."""
        transport = self._transport
        for sent, piece in enumerate(stripe, start=1):
            header = PIECE.pack(self._number, layer, piece.first, len(piece.blocks))
            async with transport.reading(layer, piece, fence) as spans:
                await transport.send(header, spans)
            if not moved(len(piece.blocks) * transport.block_bytes[layer]):
                return sent
        return len(stripe)


async def receive_pieces(
    channel: Channel,
    target: HostBlocks | Staging,
    block_bytes: Sequence[int],
    find: Callable[[int], Incoming | None],
    landed: Callable[[Incoming], None],
    tell_period_s: float,
) -> None:
    """Receive pieces from one stream until the sender closes it.

    ``block_bytes`` is what moves of a block, by layer. ``find`` gives the live transfer of a
    number, None for one that has ended, and raises LinkError for a number never granted.
    ``landed`` is called after each piece. ``tell_period_s`` is how often the sender hears that it
    lands.

    Raises:
        LinkLost: the stream has ended.
        LinkError: the sender broke the protocol.
    """
    header = memoryview(bytearray(PIECE.size))
    pieces = _PieceReader(channel, target, tell_period_s)
    while True:
        await channel.receive_into(header)
        number, layer, first, count = PIECE.unpack(header)
        if layer >= len(block_bytes):
            raise LinkError(f"piece of layer {layer} of {len(block_bytes)}")
        incoming = find(number)
        if incoming is None or incoming.pieces is None:
            await pieces.drain(count * block_bytes[layer])
            continue
        blocks = incoming.pieces.place(layer, first, count)
        await pieces.read(incoming, layer, blocks)
        if incoming.outcome is None:
            incoming.pieces.landed(count)
            landed(incoming)
        # A stream that always has data must not keep the others from being read.
        await asyncio.sleep(0)


class _PieceReader:
    """Takes the bytes of pieces from one stream, into the cache or to nowhere."""

    def __init__(
        self, channel: Channel, target: HostBlocks | Staging, tell_period_s: float
    ) -> None:
        self._channel = channel
        self._target = target
        self._tell_period_s = tell_period_s
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))

    async def read(self, incoming: Incoming, layer: int, blocks: Sequence[int]) -> None:
        """The piece that holds ``blocks`` of a layer."""
        if isinstance(self._target, HostBlocks):
            for view in self._target.spans(layer, contiguous(blocks)):
                await self._fill(view, incoming)
            return
        for strip, place in enumerate(self._target.cache.places[layer]):
            at_once = self._target.buffer_bytes // place.nbytes
            for at in range(0, len(blocks), at_once):
                await self._store(incoming, layer, strip, blocks[at : at + at_once], place.nbytes)

    async def _store(
        self, incoming: Incoming, layer: int, strip: int, blocks: Sequence[int], nbytes: int
    ) -> None:
        """By way of a buffer. While the device copies, the blocks are not given back."""
        assert isinstance(self._target, Staging)
        async with self._target.buffer() as buffer:
            await self._fill(memoryview(buffer.numpy())[: len(blocks) * nbytes], incoming)
            with incoming.storing() as may_store:
                if may_store:
                    await self._target.store(buffer, layer, strip, blocks)

    async def _fill(self, view: memoryview, incoming: Incoming) -> None:
        """Fill ``view``, but only while the transfer lives: asked again before every write."""
        while len(view):
            target = view if incoming.outcome is None else self._scratch[: len(view)]
            received = self._channel.try_receive(target)
            if not received:
                await self._channel.until_readable()
            elif incoming.outcome is None:
                incoming.moved(received, self._tell_period_s)
            view = view[received:]

    async def drain(self, nbytes: int) -> None:
        while nbytes:
            received = self._channel.try_receive(self._scratch[:nbytes])
            if not received:
                await self._channel.until_readable()
            nbytes -= received


def _piece(first: int, blocks: Sequence[int]) -> _Piece:
    return _Piece(first, blocks, contiguous(blocks))


def _pieces(first: int, count: int, block_bytes: int) -> list[tuple[int, int]]:
    """Cut a stripe into (first, count) pieces that can be sent in one go."""
    most = max(1, PIECE_BYTES // block_bytes)
    return [(at, min(most, first + count - at)) for at in range(first, first + count, most)]


def _cut(entries: int, block_bytes: int, stripes: int) -> list[tuple[int, int]]:
    """Cut so many entries into (first, count) stripes of nearly equal length."""
    wanted = max(1, min(stripes, entries, entries * block_bytes // STRIPE_BYTES))
    bounds = [entries * index // wanted for index in range(wanted + 1)]
    return [(first, after - first) for first, after in itertools.pairwise(bounds)]
