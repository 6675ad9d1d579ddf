"""An open control link: frames both ways between one sender and one receiver."""

import asyncio
import logging
import socket

from splitwise.transfer.channel import Channel
from splitwise.transfer.errors import LinkError, LinkLost
from splitwise.transfer.frames import (
    FRAME_LIMIT_BYTES,
    HEADER,
    AnyMessage,
    Message,
    body_bytes,
    decode,
    encode,
)

logger = logging.getLogger(__name__)

_READ_BYTES = 16384

# A silent peer's host is given up after about 11 s, by the kernel and without waking a thread.
_KEEPALIVE = {
    socket.TCP_KEEPIDLE: 5,
    socket.TCP_KEEPINTVL: 2,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 11_000,
    socket.TCP_NODELAY: 1,
}


def tune(sock: socket.socket) -> None:
    """Make a TCP socket send at once and notice a dead peer. Unix sockets need neither."""
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


class Link:
    """Frames in order, sent without waiting. The handshake is over when a Link begins."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._unsent: asyncio.Queue[bytes] = asyncio.Queue()
        self._behind = 0
        """Frames, or rests of them, that the kernel has not taken yet."""
        self._unread = bytearray()
        self._scratch = memoryview(bytearray(_READ_BYTES))
        self._writer = asyncio.get_running_loop().create_task(self._write(), name="kv-link-writer")

    def send(self, message: Message) -> None:
        """Send a frame. Where the peer takes none for too long, ``receive`` raises LinkError."""
        frame = encode(message)
        if self._behind == 0:
            try:
                frame = frame[self._channel.try_send([frame]) :]
            except LinkError as error:
                self._channel.interrupt(error)
                return
        if frame:
            self._behind += 1
            self._unsent.put_nowait(frame)

    async def receive(self) -> AnyMessage:
        """The peer's next frame. Reads ahead, unlike the handshake, after which descriptors come.

        Raises:
            LinkLost: the peer has closed the link.
            LinkError: the link cannot go on.
        """
        length = HEADER.size
        await self._until_read(length)
        length += body_bytes(self._unread[:length], FRAME_LIMIT_BYTES)
        await self._until_read(length)
        body = self._unread[HEADER.size : length]
        del self._unread[:length]
        return decode(body)

    async def _until_read(self, length: int) -> None:
        while len(self._unread) < length:
            received = self._channel.try_receive(self._scratch)
            if received:
                self._unread += self._scratch[:received]
            else:
                await self._channel.until_readable()

    async def flush(self) -> None:
        """Wait until the kernel has all frames, or will never have them."""
        flushed = asyncio.ensure_future(self._unsent.join())
        await asyncio.wait([flushed, self._writer], return_when=asyncio.FIRST_COMPLETED)
        flushed.cancel()

    async def until_lost(self) -> None:
        """Say no more, and read on until the peer has closed its end."""
        await self.flush()
        self._writer.cancel()
        scratch = memoryview(bytearray(65536))
        try:
            self._channel.shut_down_writing()
            while True:
                if not self._channel.try_receive(scratch):
                    await self._channel.until_readable()
        except LinkLost:
            return

    def fail(self, error: LinkError) -> None:
        """Make ``receive`` raise ``error``."""
        self._channel.interrupt(error)

    def close(self) -> None:
        """Close the socket. Frames that are still queued are lost."""
        self._writer.cancel()
        self._channel.close()

    async def _write(self) -> None:
        try:
            while True:
                await self._channel.send([await self._unsent.get()])
                self._behind -= 1
                self._unsent.task_done()
        except LinkError as error:
            self._channel.interrupt(error)
