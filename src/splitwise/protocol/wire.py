"""Control messages over a stream: a length of four bytes, then msgpack.

The life of a connection: ``dial``, or a server's ``on_connect``; ``receive`` and ``send``; then
``close``, the peer's end (EOFError) or ``fail``.
"""

import asyncio
import hmac
import os
import socket
import struct
from collections.abc import Callable
from typing import Final, Generic, TypeVar, cast

import msgspec

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
HANDSHAKE_LIMIT_BYTES: Final = 64 * 1024
"""Of a message from a peer that has not yet proved itself."""
CLOSE_LIMIT_S: Final = 5.0
_LENGTH: Final = struct.Struct("!I")
_READ_AHEAD_BYTES: Final = 1024 * 1024
"""Of messages that nobody has asked for yet; then the peer has to wait."""

In = TypeVar("In")


class WireError(Exception):
    """The peer sent what is no message of ours, or nothing; the connection is of no more use."""


class Wire(asyncio.Protocol, Generic[In]):
    """One end of a control connection. Receives messages of type ``In``, sends any struct.

    It is made for ``create_connection`` and ``create_server``, one a connection. One coroutine at
    a time receives.
    """

    def __init__(
        self, incoming: object, on_connect: "Callable[[Wire[In]], None] | None" = None
    ) -> None:
        self._on_connect = on_connect
        self._loop = asyncio.get_running_loop()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[In] = msgspec.msgpack.Decoder(incoming)
        self._unsent: list[bytes] = []
        self._unread = bytearray()
        self._wanted_bytes = 0
        """How much of ``_unread`` makes the next message whole."""
        self._reader: asyncio.Future[None] | None = None
        self._is_paused = False
        self._end: Exception | None = None
        self._lost = self._loop.create_future()
        self.heard_s = self._loop.time()
        """When anything came last, on the loop's clock."""

    @classmethod
    async def dial(cls, host: str, port: int, incoming: object) -> "Wire[In]":
        """
        Raises:
            OSError: nobody answers.
        """
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_connection(lambda: cls(incoming), host, port)
        return wire

    async def receive(self, limit_bytes: int = MAX_MESSAGE_BYTES) -> In:
        """The next message, of at most ``limit_bytes``.

        Raises:
            EOFError: the peer closed the connection (ConnectionError: or it broke).
            WireError: the bytes are not a message.
        """
        await self._until_read(_LENGTH.size)
        (length,) = _LENGTH.unpack_from(self._unread)
        if length > limit_bytes:
            raise WireError(f"message of {length} bytes; at most {limit_bytes} are taken")
        end = _LENGTH.size + length
        await self._until_read(end)
        body = bytes(self._unread[_LENGTH.size : end])
        del self._unread[:end]
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
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(framed(body))

    def fail(self, error: Exception) -> None:
        """Give the connection up: whoever receives gets ``error``."""
        self._close_reading(error)
        self._transport.abort()

    async def close(self) -> None:
        """Send what is queued and close."""
        self._flush()
        self._transport.close()
        await asyncio.wait([self._lost], timeout=CLOSE_LIMIT_S)
        self._transport.abort()  # Whatever the peer has not taken by now.

    def second_socket(self) -> socket.socket:
        """Another handle of the connection, which lasts until both are closed."""
        return socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno()))

    async def _until_read(self, wanted_bytes: int) -> None:
        while len(self._unread) < wanted_bytes:
            if self._end is not None:
                raise self._end
            if self._is_paused:
                self._is_paused = False
                self._transport.resume_reading()
            self._wanted_bytes = wanted_bytes
            self._reader = self._loop.create_future()
            await self._reader

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and not self._transport.is_closing():
            self._transport.writelines(unsent)

    def _close_reading(self, error: Exception) -> None:
        if self._end is None:
            self._end = error
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._on_connect is not None:
            self._on_connect(self)

    def data_received(self, data: bytes) -> None:
        self.heard_s = self._loop.time()
        self._unread += data
        if len(self._unread) >= self._wanted_bytes:
            self._wake()
        if len(self._unread) > self._wanted_bytes + _READ_AHEAD_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        self._close_reading(EOFError("the peer closed the connection"))

    def connection_lost(self, error: Exception | None) -> None:
        self._close_reading(error or EOFError("the connection is closed"))
        self._lost.set_result(None)


def framed(body: bytes) -> bytes:
    """An encoded message as it goes over the wire."""
    return _LENGTH.pack(len(body)) + body


def prove(cluster_key: str, nonce: bytes, machine_id: str) -> bytes:
    """Proof of knowing the cluster key, bound to this connection and machine."""
    return hmac.digest(cluster_key.encode(), nonce + machine_id.encode(), "sha256")
