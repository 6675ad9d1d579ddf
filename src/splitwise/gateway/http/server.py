"""The HTTP server under the API: uvicorn on a socket that ``listen`` bound.

The life of the server:

1. ``serve_http`` accepts connections and runs exchanges until ``stop`` is set.
2. Draining: exchanges that run may end within ``drain_s``. Connections are still accepted, so that
   whoever asks ``/health`` is told; the application refuses everything new.
3. The listener closes, and exchanges that are left are cancelled.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator
from typing import Final

import uvicorn

from splitwise.gateway.http.asgi import Application
from splitwise.gateway.http.connection import Connection, Room
from splitwise.gateway.http.exchange import HttpLimits

log = logging.getLogger(__name__)

_STOP_CHECK_S: Final = 5.0
_BACKLOG: Final = 2048
_FLUSH_S: Final = 1
"""For connections to close after the draining; then the exchanges that are left are cancelled."""


def listen(host: str, port: int) -> socket.socket:
    """Bind ``host:port``; with port 0 the system picks one (``getsockname()[1]``).

    Raises:
        OSError: the address is taken, not this machine's, or not allowed.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


class _Server(uvicorn.Server):
    """uvicorn on one listener, with connections of our own."""

    def __init__(
        self,
        config: uvicorn.Config,
        listener: socket.socket,
        limits: HttpLimits,
        tls: ssl.SSLContext | None,
    ) -> None:
        super().__init__(config)
        self._listener = listener
        self._limits = limits
        self._tls = tls
        self._room = Room()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Replaces uvicorn's, which makes connections of its own kind only."""
        await self.lifespan.startup()
        server = await asyncio.get_running_loop().create_server(
            self._connection,
            sock=self._listener,
            backlog=_BACKLOG,
            ssl=self._tls,
            # A client may be slow before its first header, too.
            ssl_handshake_timeout=self._limits.header_timeout_s if self._tls else None,
        )
        self.servers = [server]
        self.started = True

    def _connection(self) -> Connection:
        return Connection(
            self.config, self.server_state, self.lifespan.state, self._limits, self._room
        )

    # Signals belong to whoever runs the event loop.

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve_http(
    app: Application,
    listener: socket.socket,
    limits: HttpLimits,
    stop: asyncio.Event,
    tls: ssl.SSLContext | None = None,
    hurry: asyncio.Event | None = None,
) -> None:
    """Serve until ``stop`` is set, then give running exchanges ``drain_s`` to end.

    ``hurry`` cuts that short. Takes ``listener`` over. Meant for a uvloop event loop, but runs on
    any.
    """
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="none",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.ERROR,  # what clients send wrong is answered, not logged
        access_log=False,
        proxy_headers=False,
        server_header=False,
        headers=[("server", "splitwise")],
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_FLUSH_S,
    )
    server = _Server(config, listener, limits, tls)
    serving = asyncio.create_task(server.serve([listener]))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
        await _drain(server.server_state.tasks, limits.drain_s, hurry or asyncio.Event())
    finally:
        stopping.cancel()
        server.should_exit = True
        await serving
        await _await_cancelled(server)


async def _drain(exchanges: set[asyncio.Task[None]], drain_s: float, hurry: asyncio.Event) -> None:
    """Wait until no exchange runs; ``exchanges`` is uvicorn's own set, which changes meanwhile."""
    if exchanges:
        log.info("draining: %d requests run; they have %g s to end", len(exchanges), drain_s)
    clock = asyncio.get_running_loop().time
    end_s = clock() + drain_s
    hurried = asyncio.create_task(hurry.wait())
    try:
        while exchanges and not hurried.done() and (left_s := end_s - clock()) > 0:
            await asyncio.wait(
                {*exchanges, hurried}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
    finally:
        hurried.cancel()


async def _await_cancelled(server: uvicorn.Server) -> None:
    """uvicorn cancels late exchanges and leaves; wait until they have cleaned up after them."""
    if late := set(server.server_state.tasks):
        _, stuck = await asyncio.wait(late, timeout=_STOP_CHECK_S)
        if stuck:
            log.error("%d HTTP exchanges did not end when they were cancelled", len(stuck))
