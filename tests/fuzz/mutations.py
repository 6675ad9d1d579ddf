"""Valid messages made wrong: one value, field or byte of them at a time, or several."""

import random
import struct
from collections.abc import Awaitable, Callable
from copy import deepcopy
from typing import Any

import msgspec

INTEGERS = [-(2**63), -1, 0, 1, 2, 255, 2**15, 2**31, 2**32, 2**53, 2**63 - 1, 2**64 - 1]
FLOATS = [-0.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")]
TEXTS = ["", "\0", "x" * 5000, "a.b" * 50, "é\u202e", "tcp", "cuda_ipc", "cpu", "Grant", "good"]
OTHERS: list[Any] = [None, True, False, b"", b"\xff" * 40, [], {}, [[]], [None], {"": 0}]
ABSURD: list[Any] = [*INTEGERS, *FLOATS, *TEXTS, *OTHERS]


def mutated(message: msgspec.Struct, draw: random.Random) -> Any:
    """Plain data like ``message``, with one to three changes; still msgpack, perhaps no message."""
    data = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        _change(data, draw)
    return data


def _change(data: Any, draw: random.Random) -> None:
    places = list(_places(data))
    if not places:
        return
    holder, key = draw.choice(places)
    kind = draw.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[draw.choice(("x", "task", "number", "type"))] = deepcopy(draw.choice(ABSURD))
    elif kind == 2 and isinstance(holder, list):
        holder.extend(holder[:50])
    elif kind == 3 and type(holder[key]) is int and holder[key] > 0:
        holder[key] = min(holder[key] + draw.choice((-1, 1, 7)), 2**64 - 1)
    else:
        holder[key] = deepcopy(draw.choice(ABSURD))


def _places(data: Any) -> Any:
    """Every (container, key) in it."""
    keys = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    for key in list(keys):
        yield data, key
        yield from _places(data[key])


def garbled(body: bytes, draw: random.Random) -> bytes:
    """Bytes flipped, cut off, put in, or nested until a decoder gives up."""
    kind = draw.randrange(6)
    at = draw.randrange(len(body) + 1)
    if kind == 0:
        return body[:at]
    if kind == 1:
        return body[:at] + draw.randbytes(draw.randrange(1, 9)) + body[at:]
    if kind == 2:
        return draw.randbytes(draw.randrange(64))
    if kind == 3:  # A field that nobody knows, too deep to be skipped.
        return bytes([body[0] + 1]) + b"\xa1x" + b"\x91" * 5000 + b"\xc0" + body[1:]
    if kind == 4:  # Text that is no UTF-8.
        return body.replace(b"a", b"\xff")
    changed = bytearray(body)
    for _ in range(draw.randrange(1, 4)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def body_of(message: msgspec.Struct, draw: random.Random) -> bytes:
    """A message's bytes, wrong in one way or the other; sometimes right."""
    kind = draw.randrange(10)
    if kind == 0:
        return msgspec.msgpack.encode(message)
    if kind <= 2:
        return garbled(msgspec.msgpack.encode(message), draw)
    return msgspec.msgpack.encode(mutated(message, draw))


def framed(
    body: bytes, draw: random.Random, frame: Callable[[bytes], bytes], length: struct.Struct
) -> bytes:
    """``body`` in a frame; now and then in one that lies, ends early, or is none at all.

    ``length`` packs the number of bytes that a head ends with.
    """
    whole = frame(body)
    kind = draw.randrange(25)
    if kind == 0:
        return draw.randbytes(draw.randrange(1, 40))
    if kind == 1:
        return whole[: draw.randrange(len(whole))]
    if kind == 2:
        head = frame(b"")[: -length.size]
        return head + length.pack(draw.choice((2**31, 2**32 - 1, 5000, 0))) + body
    return whole


class Garbling:
    """A handshake's stream that now and then changes, cuts off or adds to what is said, which is
    its last word then. Without ``draw`` it does not."""

    def __init__(
        self,
        read: Callable[[int], Awaitable[bytes]],
        write: Callable[[bytes], Awaitable[None]],
        write_eof: Callable[[], None],
        draw: random.Random | None,
    ) -> None:
        self.read = read
        self._write = write
        self._write_eof = write_eof
        self._draw = draw
        self.is_whole = True

    async def write(self, data: bytes) -> None:
        if not self.is_whole:
            return
        said = data
        if self._draw is not None and self._draw.random() < 0.4:
            said = garbled(data, self._draw)
        await self._write(said)
        if said != data:
            self.is_whole = False
            self._write_eof()  # else both might wait for the rest
