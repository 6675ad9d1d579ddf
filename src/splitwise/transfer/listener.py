"""Where senders connect: listening sockets, and the handshake behind them."""

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from splitwise.protocol.handshake.tls import ClusterTls
from splitwise.protocol.handshake.unproven import PLACES, Unproven, accepted
from splitwise.transfer.address import ReceiverAddress
from splitwise.transfer.channel import Channel
from splitwise.transfer.deadlines import Deadlines
from splitwise.transfer.errors import LinkError
from splitwise.transfer.frames import Hello, Welcome
from splitwise.transfer.handshake import admit
from splitwise.transfer.link import tune
from splitwise.transfer.thread import LoopThread
from splitwise.transfer.tls_channel import accepted_channel
from splitwise.transfer.transports.choice import SAME_HOST, OwnEnd

logger = logging.getLogger(__name__)

_BACKLOG = 128

Check = Callable[[Hello], None]
MakeWelcome = Callable[[Hello], Welcome]
Serve = Callable[[Channel, Hello, Welcome], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class ListenAt:
    """Where to listen, and what to tell senders."""

    host: str
    port: int
    """0 picks a free one."""
    announce: tuple[str, int] | None = None
    """The address to dial, where it is another than the one listened on."""


class Listener:
    """A TCP listener and, for transports within a host, an abstract unix socket (no file)."""

    def __init__(
        self,
        machine_id: str,
        cluster_key: str,
        at: ListenAt,
        offer: OwnEnd,
        deadlines: Deadlines,
        tls: ClusterTls | None = None,
    ) -> None:
        """
        Raises:
            ValueError: senders would be told to dial a wildcard.
            OSError: ``host`` is not an address of this machine, or the port is taken.
        """
        if at.announce is None and at.host in ("", "0.0.0.0", "::"):
            raise ValueError(f"host is {at.host!r}: name the address under which senders reach it")
        self._machine_id = machine_id
        self._cluster_key = cluster_key
        self._deadlines = deadlines
        self._tls = tls
        self._unproven = Unproven(PLACES)
        family = socket.AF_INET6 if ":" in at.host else socket.AF_INET
        tcp = socket.create_server((at.host, at.port), family=family, backlog=_BACKLOG)
        self._listeners = [(tcp, frozenset(offer.transports) - SAME_HOST)]
        unix_name = ""
        if SAME_HOST & set(offer.transports):
            unix_name = f"splitwise-{secrets.token_hex(8)}"
            unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            unix.bind("\0" + unix_name)
            unix.listen(_BACKLOG)
            self._listeners.append((unix, frozenset(offer.transports) & SAME_HOST))
        dial_host, dial_port = at.announce or (at.host, tcp.getsockname()[1])
        self.address = ReceiverAddress(
            machine_id=machine_id,
            host=dial_host,
            port=dial_port,
            unix_name=unix_name,
            host_identity=offer.host_identity,
            device=offer.device,
            transports=offer.transports,
            rdma=offer.rdma,
            tls=tls is not None,
        )

    def open(self, thread: LoopThread, check: Check, welcome: MakeWelcome, serve: Serve) -> None:
        """On ``thread``: admit senders and ``serve`` each connection in a task of its own."""
        for listener, transports in self._listeners:
            listener.setblocking(False)
            work = self._listen(thread, listener, transports, check, welcome, serve)
            thread.spawn(work, "listener")

    async def _listen(
        self,
        thread: LoopThread,
        listener: socket.socket,
        transports: frozenset[str],
        check: Check,
        welcome: MakeWelcome,
        serve: Serve,
    ) -> None:
        def check_all(hello: Hello) -> None:
            if hello.transport not in transports:
                raise LinkError(f"transport {hello.transport!r} is not offered here")
            check(hello)

        async for sock in accepted(listener, self._unproven):
            work = self._receive(sock, check_all, welcome, serve)
            self._unproven.add(thread.spawn(work, "connection"))

    async def _receive(
        self, sock: socket.socket, check: Check, welcome: MakeWelcome, serve: Serve
    ) -> None:
        tune(sock)
        channel = accepted_channel(sock, self._deadlines.write_s, self._tls)
        try:
            async with asyncio.timeout(self._deadlines.connect_s):
                await channel.secure()
                hello, welcomed = await admit(
                    channel, self._machine_id, self._cluster_key, check, welcome
                )
            task = asyncio.current_task()
            assert task is not None
            self._unproven.proven(task)
            await serve(channel, hello, welcomed)
        except TimeoutError:
            logger.warning("dropped a connection: no handshake in time")
        except (LinkError, OSError) as error:
            logger.warning("dropped a connection: %s", error)
        finally:
            channel.close()
