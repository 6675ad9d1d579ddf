"""From a request's bytes to its struct, without holding up the event loop.

JSON is decoded in one go, and meanwhile nothing else runs. What that takes goes by the number of
values, not of bytes: one text of 4 MB is nothing, a million empty lists are a tenth of a second. So
of a large body the values are counted first, by means that are as fast as memory:

1. Its quotes bound the strings, and so the keys and objects with keys, that it has.
2. A scan finds where each field lies, without making values. Only the fields that may be long
   (``messages``, ``prompt``, ``tokens``) are let be so; ``tools`` and what no field is for are
   never made values at all.
3. Of a list of token ids the commas are counted.
"""

import asyncio
from typing import Final, Generic, TypeVar

import msgspec

from splitwise.gateway.openai.errors import ApiError
from splitwise.gateway.openai.validation import decode

T = TypeVar("T", bound=msgspec.Struct)

LARGE_BODY_BYTES: Final = 65_536
"""Smaller ones are decoded as they are: they cannot hold many values."""
MAX_STRINGS: Final = 50_000
"""Keys are strings, too."""
MAX_OTHER_BYTES: Final = 65_536
"""Of all fields together that need not be long and are no strings."""
_LONG: Final = ("messages", "prompt", "tokens")
_NOT_DECODED: Final = ("tools",)
_ABSENT: Final = msgspec.Raw(b"")


class BodyDecoder(Generic[T]):
    """Decodes bodies of one kind."""

    def __init__(self, struct: type[T]) -> None:
        self._decoder = msgspec.json.Decoder(struct)
        self._names = struct.__struct_fields__
        fields = [(name, msgspec.Raw, _ABSENT) for name in self._names]
        self._scanner = msgspec.json.Decoder(msgspec.defstruct(f"{struct.__name__}Scan", fields))
        self._long = next((name for name in _LONG if name in self._names), None)

    async def decode(self, body: bytes, max_token_ids: int) -> T:
        """
        Raises:
            ApiError: 400; ``param`` is the path of the field that does not fit.
        """
        if len(body) > LARGE_BODY_BYTES:
            body = await self._made_small(body, max_token_ids)
        return decode(body, self._decoder)

    async def _made_small(self, body: bytes, max_token_ids: int) -> bytes:
        """The body with what is needed of it. Each step takes milliseconds, and has a turn."""
        self._check_strings(body)
        await asyncio.sleep(0)
        found = self._scan(body)
        await asyncio.sleep(0)
        self._check_fields(found, max_token_ids)
        small = _object(found)
        await asyncio.sleep(0)
        return small

    def _scan(self, body: bytes) -> dict[str, bytes]:
        """The fields that are there, as JSON."""
        scan = decode(body, self._scanner)
        raws = {name: getattr(scan, name) for name in self._names}
        return {name: bytes(raw) for name, raw in raws.items() if raw is not _ABSENT}

    def _check_strings(self, body: bytes) -> None:
        """The quote that begins a string never follows a backslash, so none is missed."""
        quotes = body.count(b'"') - body.count(b'\\"')
        if quotes > 2 * MAX_STRINGS:
            raise ApiError(
                400,
                f"{self._long} is too long: the body holds over {MAX_STRINGS} strings and keys; "
                "send fewer",
                self._long,
            )

    def _check_fields(self, found: dict[str, bytes], max_token_ids: int) -> None:
        others = {
            name: len(value)
            for name, value in found.items()
            if name not in _LONG + _NOT_DECODED and not value.startswith(b'"')
        }
        if sum(others.values()) > MAX_OTHER_BYTES:
            largest = max(others, key=lambda name: others[name])
            raise ApiError(
                400,
                f"{largest} has {others[largest]} bytes: all fields but "
                f"{' and '.join(name for name in _LONG if name in self._names)} may have "
                f"{MAX_OTHER_BYTES} together; send less",
                largest,
            )
        for name in ("prompt", "tokens"):
            if len(value := found.get(name, b"")) > LARGE_BODY_BYTES:
                _check_list(name, value, max_token_ids)


def _object(fields: dict[str, bytes]) -> bytes:
    """A body of these fields; of what is not decoded anyway no more than that it is something."""
    parts = [
        b'"%s":%s' % (name.encode(), b"[1]" if _is_long_unread(name, value) else value)
        for name, value in fields.items()
    ]
    return b"{" + b",".join(parts) + b"}"


def _is_long_unread(name: str, value: bytes) -> bool:
    return name in _NOT_DECODED and len(value) > LARGE_BODY_BYTES


def _check_list(name: str, value: bytes, max_token_ids: int) -> None:
    count = value.count(b",") + 1
    if not value.startswith(b"[") or count <= max_token_ids:
        return
    if not value[1:].lstrip().startswith(b'"'):
        raise ApiError(
            400,
            f"{name} has {count} token ids: send at most {max_token_ids} in one request",
            name,
        )
    if not _strings(value):
        raise ApiError(400, f"{name} mixes strings and others: send a list of one kind", name)


def _strings(value: bytes) -> bool:
    """Whether it is a list of strings alone; what begins like one may go on with a million ids."""
    try:
        msgspec.json.decode(value, type=list[str])
    except (msgspec.MsgspecError, ValueError):
        return False
    return True
