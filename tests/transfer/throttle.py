"""A TCP relay on loopback that lets so many bytes a second through, to play a slow network."""

import socket
import threading
import time
from contextlib import suppress
from typing import Self

_BUFFER_BYTES = 64 * 2**10
"""Of the kernel's, on either side: else it takes a whole small transfer at once."""


class Throttle:
    """Relays connections to ``port`` on loopback; ``port`` of its own is where to dial."""

    def __init__(self, target_port: int, bytes_a_second: float) -> None:
        self._target_port = target_port
        self._bytes_a_second = bytes_a_second
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in [self._listener, *self._sockets]:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target_port))
                far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
                self._sockets += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._relay, args=(source, target), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(16 * 2**10):
                time.sleep(len(data) / self._bytes_a_second)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
