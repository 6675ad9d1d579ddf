"""What a machine tells its cluster scheduler, from the thread that has something to tell.

Handing each token to the event loop's thread first would wake that for every iteration, and have
two threads contend for the interpreter at the worst of moments.
"""

import asyncio
import contextlib
import socket
import threading
from typing import Any, Final, Protocol

import msgspec

from splitwise.protocol.wire import Wire, WireError, framed

UNSENT_LIMIT_BYTES: Final = 64 * 1024 * 1024


class Outbox(Protocol):
    """What any thread may say things by."""

    def send(self, message: msgspec.Struct) -> None:
        """Send a message. What a broken connection is given is dropped: whoever reads from it
        finds its end."""

    def close(self) -> None: ...


class SocketOutbox:
    """Sends on a socket that another reads; any thread may."""

    def __init__(self, sock: socket.socket, patience_s: float) -> None:
        """Takes ``sock`` over; ``patience_s`` is how long the peer may take nothing."""
        sock.settimeout(patience_s)
        self._socket = sock
        self._encoder = msgspec.msgpack.Encoder()
        self._lock = threading.Lock()
        self._is_broken = False

    def send(self, message: msgspec.Struct) -> None:
        """Hand a message to the kernel. What a broken connection is given is dropped: whoever
        reads from it finds its end."""
        with self._lock:
            if self._is_broken:
                return
            try:
                self._socket.sendall(framed(self._encoder.encode(message)))
            except OSError:
                self._break()

    def close(self) -> None:
        with self._lock:
            self._is_broken = True
            self._socket.close()

    def _break(self) -> None:
        """Half a message may be out: nothing can follow it."""
        self._is_broken = True
        with contextlib.suppress(OSError):  # It has ended by itself.
            self._socket.shutdown(socket.SHUT_RDWR)


class WireOutbox:
    """Sends by the connection's own thread: under TLS one thread alone may read and write. Costs
    that thread a turn for every iteration of the engine."""

    def __init__(self, wire: Wire[Any]) -> None:
        self._wire = wire
        self._loop = asyncio.get_running_loop()

    def send(self, message: msgspec.Struct) -> None:
        # Encoded there, as with all the others: an iteration's words are not changed once said.
        self._loop.call_soon_threadsafe(self._send, message)

    def close(self) -> None:
        """Nothing to do: what is said after the connection's end is dropped there."""

    def _send(self, message: msgspec.Struct) -> None:
        self._wire.send(message)
        if self._wire.unsent_bytes > UNSENT_LIMIT_BYTES:
            self._wire.fail(WireError("the peer takes nothing"))
