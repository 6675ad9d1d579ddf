"""Control messages over a stream: a length of four bytes, then msgpack.

The life of a connection: ``dial`` or ``accept``; ``read`` and ``write`` while it is the
handshake's; ``trust``; ``receive`` and ``send``; then ``close``, the peer's end (EOFError) or
``fail``.
"""

import asyncio
import os
import socket
import struct
from typing import Final, Generic, TypeVar, cast

import msgspec

from splitwise.protocol.handshake.proofs import NO_BINDING
from splitwise.protocol.handshake.tls import ClusterTls, binding_of

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
CLOSE_LIMIT_S: Final = 5.0
_LENGTH: Final = struct.Struct("!I")
_READ_AHEAD_BYTES: Final = 1024 * 1024
"""Of messages that nobody has asked for yet; then the peer has to wait."""
_STRANGERS_READ_AHEAD_BYTES: Final = 4096
"""Of a peer that has not proved itself."""

In = TypeVar("In")


class WireError(Exception):
    """The peer sent what is no message of ours, or nothing; the connection is of no more use."""


class Wire(asyncio.Protocol, Generic[In]):
    """One end of a control connection. Receives messages of type ``In``, sends any struct.

    One coroutine at a time receives.
    """

    def __init__(self, incoming: object) -> None:
        self._loop = asyncio.get_running_loop()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[In] = msgspec.msgpack.Decoder(incoming)
        self._unsent: list[bytes] = []
        self._unread = bytearray()
        self._wanted_bytes = 0
        """How much of ``_unread`` makes the next message whole."""
        self._reader: asyncio.Future[None] | None = None
        self._is_paused = False
        self._read_ahead_bytes = _STRANGERS_READ_AHEAD_BYTES
        self._end: Exception | None = None
        self.binding = NO_BINDING
        """Of the certificate under TLS, for the handshake."""
        self._lost = self._loop.create_future()
        self.heard_s = self._loop.time()
        """When anything came last, on the loop's clock."""

    @classmethod
    async def dial(
        cls, host: str, port: int, incoming: object, tls: ClusterTls | None = None
    ) -> "Wire[In]":
        """
        Raises:
            OSError: nobody answers, or (SSLError) not as TLS would have it.
        """
        loop = asyncio.get_running_loop()
        wire = cls(incoming)
        await loop.create_connection(
            lambda: wire, host, port, ssl=None if tls is None else tls.client
        )
        if tls is not None:
            wire.binding = binding_of(wire._transport.get_extra_info("ssl_object"))
        return wire

    @classmethod
    async def accept(
        cls, sock: socket.socket, incoming: object, tls: ClusterTls | None = None
    ) -> "Wire[In]":
        """The other end, over a socket that was accepted, which it takes over.

        Raises:
            OSError: the connection broke, or (SSLError) the peer speaks no TLS.
        """
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        wire = cls(incoming)  # under TLS uvloop returns a protocol of its own
        await loop.connect_accepted_socket(
            lambda: wire, sock, ssl=None if tls is None else tls.server
        )
        if tls is not None:
            wire.binding = tls.own_binding
        return wire

    async def read(self, nbytes: int) -> bytes:
        """Exactly so many bytes: the handshake's, which are no messages.

        Raises:
            EOFError: the peer closed the connection (ConnectionError: or it broke).
        """
        await self._until_read(nbytes)
        data = bytes(self._unread[:nbytes])
        del self._unread[:nbytes]
        return data

    async def write(self, data: bytes) -> None:
        """Send bytes of the handshake."""
        self._transport.write(data)

    def trust(self) -> None:
        """The peer has proved itself: it may send ahead of what is read."""
        self._read_ahead_bytes = _READ_AHEAD_BYTES

    async def receive(self) -> In:
        """The next message.

        Raises:
            EOFError: the peer closed the connection (ConnectionError: or it broke).
            WireError: the bytes are not a message.
        """
        await self._until_read(_LENGTH.size)
        (length,) = _LENGTH.unpack_from(self._unread)
        if length > MAX_MESSAGE_BYTES:
            raise WireError(f"message of {length} bytes; at most {MAX_MESSAGE_BYTES} are taken")
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

    def abort(self) -> None:
        """Close at once; what is queued is lost."""
        self._transport.abort()

    async def close(self) -> None:
        """Send what is queued and close."""
        self._flush()
        self._transport.close()
        await asyncio.wait([self._lost], timeout=CLOSE_LIMIT_S)
        self._transport.abort()  # Whatever the peer has not taken by now.

    @property
    def unsent_bytes(self) -> int:
        """What the kernel has not taken yet."""
        return self._transport.get_write_buffer_size()

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

    def data_received(self, data: bytes) -> None:
        self.heard_s = self._loop.time()
        self._unread += data
        if len(self._unread) >= self._wanted_bytes:
            self._wake()
        if len(self._unread) > self._wanted_bytes + self._read_ahead_bytes and not self._is_paused:
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
