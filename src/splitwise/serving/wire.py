"""Control messages over a stream: a length of four bytes, then msgpack."""

import asyncio
import hmac
import struct
from typing import Final, Generic, TypeVar

import msgspec

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
HANDSHAKE_LIMIT_BYTES: Final = 64 * 1024
"""Of a message from a peer that has not yet proved itself."""
_LENGTH: Final = struct.Struct("!I")

In = TypeVar("In")


class WireError(Exception):
    """The peer sent what is no message of ours; the connection is of no more use."""


class Wire(Generic[In]):
    """One end of a control connection. Receives messages of type ``In``, sends any struct."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, incoming: object
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._queued: list[bytes] = []
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[In] = msgspec.msgpack.Decoder(incoming)

    async def receive(self, limit_bytes: int = MAX_MESSAGE_BYTES) -> In:
        """The next message, of at most ``limit_bytes``.

        Raises:
            EOFError: the peer closed the connection (ConnectionError: or it broke).
            WireError: the bytes are not a message.
        """
        head = await self._reader.readexactly(_LENGTH.size)
        (length,) = _LENGTH.unpack(head)
        if length > limit_bytes:
            raise WireError(f"message of {length} bytes; at most {limit_bytes} are taken")
        body = await self._reader.readexactly(length)
        try:
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise WireError(f"malformed message: {error}") from error

    def send(self, message: msgspec.Struct) -> None:
        """Queue a message; never blocks. What a closed connection is given is dropped.

        Messages of one turn of the event loop leave together: a write of its own costs more than
        all else that is done for a message.
        """
        body = self._encoder.encode(message)
        if not self._queued:
            self._loop.call_soon(self._flush)
        self._queued += (_LENGTH.pack(len(body)), body)

    def _flush(self) -> None:
        queued, self._queued = self._queued, []
        if queued and not self._writer.is_closing():
            self._writer.writelines(queued)

    async def close(self) -> None:
        """Send what is queued and close."""
        self._flush()
        self._writer.close()
        try:
            await asyncio.wait_for(self._writer.wait_closed(), timeout=5)
        except OSError:
            return  # The peer is gone; there is nobody left to tell.


def prove(cluster_key: str, nonce: bytes, machine_id: str) -> bytes:
    """Proof of knowing the cluster key, bound to this connection and machine."""
    return hmac.digest(cluster_key.encode(), nonce + machine_id.encode(), "sha256")
