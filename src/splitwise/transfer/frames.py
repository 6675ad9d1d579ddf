"""The control frames between a sender and a receiver, and their one codec.

A frame is a header (protocol version, u16; body length, u32; both big-endian) and a msgpack body.
They come after the handshake: Welcome first; then grants, revocations and answers flow from the
receiver, signals and stops from the sender. Keys and values are never in a frame.
"""

import struct
from typing import Annotated

import msgspec

from splitwise.transfer.errors import LinkError
from splitwise.transfer.events import NotNegative, TransferStats
from splitwise.transfer.layout import CacheLayout

PROTOCOL_VERSION = 5
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
HEADER = struct.Struct("!HI")
FRAME_LIMIT_BYTES = 16 * 2**20
PAYLOAD_LIMIT_BYTES = 8 * 2**20
"""Of what ``finish`` carries."""


class Message(msgspec.Struct, tag=True, frozen=True):
    """A control frame's body."""


class Hello(msgspec.Struct, frozen=True):
    """What a sender claims in the handshake. ``link`` names the link that a data stream joins."""

    machine_id: str
    layout: CacheLayout
    transport: str
    link: int | None = None


class Welcome(Message, frozen=True):
    """Receiver, first after the handshake: it takes the sender in."""

    link: int
    layout: CacheLayout


class Handles(Message, frozen=True):
    """Receiver, first on a link over CUDA IPC: what opens each region of its cache."""

    regions: list[bytes]


class Window(Message, frozen=True):
    """Receiver, first on a link over NIXL and again for each new window: how the sender's agent
    reaches the cache, for all grants that follow.

    ``metadata`` is NIXL's. ``regions`` is where each lies in the receiver's address space, on the
    device ``device_index`` (0 in host memory).
    """

    metadata: bytes
    regions: list[Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]]
    device_index: NotNegative


class Ready(Message, frozen=True):
    """Sender, once the transport of a link is open: grants may come. Without it the link is given
    up, as where another transport is tried, and nothing was under way."""


class Refused(Message, frozen=True):
    """Receiver: the last frame before it gives up the link."""

    reason: str


class Grant(Message, frozen=True):
    """Receiver: put the transfer into these blocks, in the order of the request's block table.

    The first ``skipped`` entries of that it holds already: ``blocks`` are for those that follow.
    ``number`` stands for the transfer on this link from here on; it is never used again.
    """

    number: int
    transfer_id: str
    blocks: list[int]
    skipped: NotNegative = 0


class Revoke(Message, frozen=True):
    """Receiver: stop, and say so."""

    number: int
    reason: str


class Done(Message, frozen=True):
    """Sender: the last put is made. One a transfer.

    ``finished_s`` is the sender's monotonic clock at ``finish``, where the receiver can read it;
    ``put_s`` is the time from then to the last put. ``checksums`` holds what ``checksum`` makes of
    each layer.
    """

    number: int
    payload: bytes
    early_bytes: NotNegative
    puts: NotNegative
    put_s: Seconds
    finished_s: Seconds | None = None
    checksums: list[list[int]] | None = None


class Progress(Message, frozen=True):
    """Either end, now and then: so many bytes of the transfer are put, have landed or are verified.

    It keeps the other end waiting, but only where the number has grown.
    """

    number: int
    moved_bytes: NotNegative


class Stopped(Message, frozen=True):
    """Sender: no put is under way and none will start. The transfer will not arrive."""

    number: int
    reason: str


class Answer(Message, frozen=True):
    """Receiver, to Done: what it cost, or why it was not taken."""

    number: int
    stats: TransferStats | None = None
    error: str = ""


AnyMessage = (
    Welcome
    | Ready
    | Handles
    | Window
    | Refused
    | Grant
    | Revoke
    | Done
    | Progress
    | Stopped
    | Answer
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: Message) -> bytes:
    """The whole frame."""
    body = _encoder.encode(message)
    return HEADER.pack(PROTOCOL_VERSION, len(body)) + body


def body_bytes(header: bytes | bytearray, limit_bytes: int) -> int:
    """How long the body after ``header`` is.

    Raises:
        LinkError: another protocol version, or a longer body than ``limit_bytes``.
    """
    version, length = HEADER.unpack(header)
    if version != PROTOCOL_VERSION:
        raise LinkError(
            f"the peer speaks transfer protocol {version}, this machine {PROTOCOL_VERSION}: "
            "run the same release of splitwise on both"
        )
    if length > limit_bytes:
        raise LinkError(f"frame of {length} bytes where at most {limit_bytes} are allowed")
    return int(length)


def decode(body: bytes | bytearray) -> AnyMessage:
    """
    Raises:
        LinkError: not a message of this protocol.
    """
    try:
        message: AnyMessage = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LinkError(f"bad frame: {error}") from error
    return message
