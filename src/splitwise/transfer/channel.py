"""A socket on a transfer thread's event loop: bytes go straight between it and the caller's memory.

asyncio's own streams copy what they carry and cannot pass file descriptors; this does neither.
"""

import asyncio
import fcntl
import socket
import sys
import termios
from collections.abc import Sequence

from splitwise.protocol.handshake.proofs import NO_BINDING
from splitwise.transfer.errors import LinkError, LinkLost
from splitwise.transfer.frames import HEADER, AnyMessage, Message, body_bytes, decode, encode

Buffer = bytes | bytearray | memoryview

_BUFFERS_A_CALL = 512  # the kernel takes at most 1024 (IOV_MAX)


class Channel:
    """One connected stream socket. At most one coroutine reads and one writes at a time."""

    def __init__(self, sock: socket.socket, write_s: float) -> None:
        """``write_s``: how long the peer may leave our bytes lying before the channel fails."""
        sock.setblocking(False)
        self.sock = sock
        self._write_s = write_s
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Future[None] | None = None
        self._is_polled = False
        """Whether the loop looks out for data; it goes on doing so from one wait to the next."""
        self._writer: asyncio.Future[None] | None = None
        self._interrupted: LinkError | None = None
        self._parting = False
        self.binding = NO_BINDING
        """Of the certificate under TLS, for the handshake."""

    async def secure(self) -> None:
        """Before anything is said: nothing to do, but under TLS."""

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """Hand all bytes to the kernel.

        Raises:
            LinkError: the peer left them lying too long.
            LinkLost: the peer is gone.
        """
        left = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        while left:
            if sent := self.try_send(left):
                left = _after(left, sent)
            else:
                await self.until_writable()

    def try_send(self, buffers: Sequence[Buffer]) -> int:
        """Hand over what the kernel takes at once; returns how many bytes.

        Raises:
            LinkLost: the peer is gone.
        """
        try:
            return self._send(buffers)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise LinkLost(f"connection lost: {error}") from error

    async def receive_into(self, view: memoryview) -> None:
        """Fill ``view``.

        Raises:
            LinkLost: the peer is gone.
        """
        while len(view):
            received = self.try_receive(view)
            if not received:
                await self.until_readable()
            view = view[received:]

    def try_receive(self, view: memoryview) -> int:
        """Receive what is there already, at most ``view``; 0 where nothing is.

        Raises:
            LinkLost: the peer is gone.
        """
        if self._interrupted is not None:
            raise self._interrupted
        try:
            received = self._receive_into(view)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise LinkLost(f"connection lost: {error}") from error
        if not received:
            raise LinkLost("the peer closed the connection")
        return received

    # What TLS does in its own way; BlockingIOError where nothing can be done now.

    def _send(self, buffers: Sequence[Buffer]) -> int:
        return self.sock.sendmsg(buffers[:_BUFFERS_A_CALL])

    def _receive_into(self, view: memoryview) -> int:
        return self.sock.recv_into(view)

    async def receive_fds(self) -> list[int]:
        """The descriptors that come with the next byte (SCM_RIGHTS); at most one.

        Raises:
            LinkLost: the peer is gone.
        """
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.sock, 1, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                await self.until_readable()
                continue
            except OSError as error:
                raise LinkLost(f"connection lost: {error}") from error
            if not data:
                raise LinkLost("the peer closed the connection")
            return fds

    # As the handshake reads and writes.

    async def read(self, nbytes: int) -> bytes:
        """Exactly so many bytes.

        Raises:
            LinkLost: the peer is gone.
        """
        data = bytearray(nbytes)
        await self.receive_into(memoryview(data))
        return bytes(data)

    async def write(self, data: bytes) -> None:
        await self.send([data])

    async def send_message(self, message: Message) -> None:
        await self.send([encode(message)])

    async def receive_message(self, limit_bytes: int) -> AnyMessage:
        """
        Raises:
            LinkError: not a frame of this protocol, or too long a one.
        """
        header = bytearray(HEADER.size)
        await self.receive_into(memoryview(header))
        body = bytearray(body_bytes(header, limit_bytes))
        await self.receive_into(memoryview(body))
        return decode(body)

    async def until_readable(self) -> None:
        """Wait for data. It may be gone already when this returns: try again then."""
        self._reader = self._loop.create_future()
        if not self._is_polled:
            self._loop.add_reader(self.sock, self._on_readable)
            self._is_polled = True
        await self._reader

    def _on_readable(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
            return
        self._loop.remove_reader(self.sock)  # Nobody reads for now.
        self._is_polled = False

    async def until_writable(self) -> None:
        """
        Raises:
            LinkError: the peer has taken nothing for too long.
        """
        left_bytes = self._unsent_bytes()
        while not await self._is_writable_in_time():
            before_bytes, left_bytes = left_bytes, self._unsent_bytes()
            if left_bytes >= before_bytes:
                raise LinkError(f"the peer has taken no data for {self._write_s:g} s")

    async def _is_writable_in_time(self) -> bool:
        self._writer = self._loop.create_future()
        self._loop.add_writer(self.sock, _wake, self._writer)
        try:
            async with asyncio.timeout(self._write_s):
                await self._writer
        except TimeoutError:
            return False
        finally:
            if self.sock.fileno() >= 0:
                self._loop.remove_writer(self.sock)
        return True

    def _unsent_bytes(self) -> int:
        """What the peer has not acknowledged yet. The kernel calls a socket writable only when a
        third of its buffer is free: over a slow link that comes long after the first byte went."""
        return int.from_bytes(fcntl.ioctl(self.sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)

    def interrupt(self, error: LinkError) -> None:
        """Make the coroutine that reads raise ``error``; after ``shut_down_writing`` nothing."""
        if self._parting:
            return
        self._interrupted = error
        if self._reader is not None and not self._reader.done():
            self._reader.set_exception(error)

    def shut_down_writing(self) -> None:
        """Say no more: the peer reads an end of file. Reading goes on."""
        self._parting = True
        self._interrupted = None
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise LinkLost(f"connection lost: {error}") from error

    def close(self) -> None:
        """Close the socket; coroutines that wait on it raise LinkLost."""
        if self.sock.fileno() < 0:
            return
        self._loop.remove_reader(self.sock)
        self._loop.remove_writer(self.sock)
        for waiter in (self._reader, self._writer):
            if waiter is not None and not waiter.done():
                waiter.set_exception(LinkLost("this machine closed the connection"))
        self.sock.close()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _after(buffers: list[memoryview], sent: int) -> list[memoryview]:
    """What is left of ``buffers`` once their first ``sent`` bytes are gone."""
    for index, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [buffer[sent:], *buffers[index + 1 :]]
        sent -= len(buffer)
    return []
