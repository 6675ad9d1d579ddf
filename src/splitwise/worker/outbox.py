"""What a machine tells its cluster scheduler, from the thread that has something to tell.

Handing each token to the event loop's thread first would wake that for every iteration, and have
two threads contend for the interpreter at the worst of moments.
"""

import contextlib
import socket
import threading

import msgspec

from splitwise.protocol.wire import framed


class Outbox:
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
