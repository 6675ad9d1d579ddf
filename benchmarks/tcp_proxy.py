"""A TCP proxy that can be told to misbehave: to hang, to break its connections, to flip a bit."""

import asyncio
import random
from collections.abc import Callable

CHUNK_BYTES = 256 * 1024
CORRUPT_FROM_BYTES = 256
"""Smaller chunks pass: what they carry is mostly messages, and TCP's own checksums guard those; a
cache that arrives is what a faulty card or driver spoils."""


class TcpProxy:
    """Passes connections on from a port of its own to another of this host."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._on_corrupted: Callable[[], None] | None = None

    async def start(self) -> int:
        """Listen; returns the port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Harms.

    def hang(self) -> None:
        """Pass nothing on, in either direction, until ``resume``."""
        self._open.clear()

    def resume(self) -> None:
        self._open.set()

    def reset(self) -> None:
        """Break every connection there is."""
        for writer in list(self._writers):
            writer.transport.abort()

    def corrupt_next(self, on_corrupted: Callable[[], None] | None) -> None:
        """Flip one bit of the next large chunk that comes in, and tell; None: do not."""
        self._on_corrupted = on_corrupted

    # Connections.

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._open.wait()
            target = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:  # Nobody listens there, for the worker is being started again.
            writer.transport.abort()
            return
        finally:
            self._tasks.discard(task)
        self._writers |= {writer, target[1]}
        for source, sink, is_inward in ((reader, target[1], True), (target[0], writer, False)):
            pump = asyncio.create_task(self._pump(source, sink, is_inward))
            self._tasks.add(pump)
            pump.add_done_callback(self._tasks.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, is_inward: bool
    ) -> None:
        try:
            while data := await source.read(CHUNK_BYTES):
                await self._open.wait()
                sink.write(self._corrupted(data) if is_inward else data)
                await sink.drain()
            await self._open.wait()
            if sink.can_write_eof():
                sink.write_eof()
        except OSError:  # Either end broke it; the other is to see the same.
            sink.transport.abort()
        finally:
            self._writers.discard(sink)

    def _corrupted(self, data: bytes) -> bytes:
        if self._on_corrupted is None or len(data) < CORRUPT_FROM_BYTES:
            return data
        self._on_corrupted()
        spoilt = bytearray(data)
        spoilt[random.randrange(len(data) // 2, len(data))] ^= 1 << random.randrange(8)
        return bytes(spoilt)
