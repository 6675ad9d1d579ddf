"""Where workers dial in: the cluster scheduler's end of the control connections.

The life of a connection:

1. It waits for a place among those that have not proved themselves (``unproven``).
2. The handshake: both ends prove that they know the cluster key, and the worker what it claims
   (``Register``). Until then it may be dropped to make room for another.
3. ``Welcome``; the machine is in the cluster. Messages go both ways. A machine that does not fit is
   ``Refused`` with a reason.
4. Nothing comes for a moment: the machine is not relied on until something does (``silence``).
5. The connection ends, or nothing comes for too long: the machine is lost.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Collection
from typing import Final

import msgspec

from splitwise.cluster.scheduler import ClusterScheduler
from splitwise.protocol.handshake.proofs import HandshakeError
from splitwise.protocol.handshake.tls import ClusterTls
from splitwise.protocol.handshake.unproven import PLACES, Unproven, accepted
from splitwise.protocol.messages import Refused, Register, Shutdown, ToScheduler
from splitwise.protocol.registration import admit
from splitwise.protocol.wire import Wire, WireError
from splitwise.scheduling.silence import LOOK_PERIOD_S, SILENT_LOOKS, Hearing, Silence

log = logging.getLogger(__name__)

HANDSHAKE_LIMIT_S: Final = 10.0
OVERDUE_PERIOD_S: Final = 1.0
_BACKLOG: Final = 1024
"""Machines that lost the same scheduler all come back in one moment."""


class WorkerLink:
    """A registered worker's connection (``roster.MachineLink``)."""

    def __init__(self, wire: Wire[ToScheduler], register: Register) -> None:
        self.wire = wire
        self.register = register
        self.silence = Silence(wire.heard_s)

    def send(self, message: msgspec.Struct) -> None:
        self.wire.send(message)


class SchedulerServer:
    """Accepts workers into a cluster."""

    def __init__(
        self,
        cluster: ClusterScheduler,
        cluster_key: str,
        on_silent: Callable[[str], None] = lambda _: None,
        places: int = PLACES,
        tls: ClusterTls | None = None,
    ) -> None:
        """``on_silent`` gets the id of each machine that is lost because it said or did nothing;
        ``places`` bounds the connections that have not proved themselves. With ``tls`` workers
        must speak it, also to each other."""
        self._cluster = cluster
        self._on_silent = on_silent
        self._cluster_key = cluster_key
        self._unproven = Unproven(places)
        self._tls = tls
        self._links: dict[WorkerLink, asyncio.Task[None]] = {}
        self._machines: dict[WorkerLink, int] = {}
        """Their indices in the cluster."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting: list[asyncio.Task[None]] = []
        self._closing = False

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; returns the address that workers dial.

        Raises:
            OSError: ``host`` is not an address of this machine, or the port is taken.
        """
        listeners = await _listen(host, port)
        self._accepting = [asyncio.create_task(self._accept(listener)) for listener in listeners]
        self._tasks.add(asyncio.create_task(_every(LOOK_PERIOD_S, self._look_for_silent)))
        self._tasks.add(asyncio.create_task(_every(OVERDUE_PERIOD_S, self._fail_overdue)))
        bound = listeners[0].getsockname()
        return bound[0], bound[1]

    async def close(self, ours: Collection[str]) -> None:
        """Tell the workers ``ours`` to end and wait until their connections have; hang up on all
        others, who may dial again once there is a scheduler."""
        self._closing = True
        for task in self._accepting:
            task.cancel()
        ending = [link for link in self._links if link.register.machine_id in ours]
        for link in ending:
            link.send(Shutdown())
        if ending:
            connections = [self._links[link] for link in ending]
            await asyncio.wait(connections, timeout=HANDSHAKE_LIMIT_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._accepting, *self._tasks, return_exceptions=True)

    def _fail_overdue(self) -> None:
        now_s = time.monotonic()
        self._cluster.fail_overdue(now_s)
        halted = self._cluster.halted(now_s)
        for link in [link for link, machine in self._machines.items() if machine in halted]:
            link.wire.fail(WireError("it reports, but computes nothing of what it has to"))
            self._on_silent(link.register.machine_id)

    def _look_for_silent(self) -> None:
        for link, machine in list(self._machines.items()):
            if not link.silence.look(link.wire.heard_s):
                continue
            match link.silence.hearing:
                case Hearing.HEARD:
                    self._cluster.heard_again(machine)
                case Hearing.QUIET:
                    self._cluster.suspect(machine)
                case Hearing.SILENT:
                    link.wire.fail(WireError(f"silent for {SILENT_LOOKS * LOOK_PERIOD_S:g} s"))
                    self._on_silent(link.register.machine_id)

    async def _accept(self, listener: socket.socket) -> None:
        async for sock in accepted(listener, self._unproven):
            task = asyncio.create_task(self._converse(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._unproven.add(task)

    async def _converse(self, sock: socket.socket) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            async with asyncio.timeout(HANDSHAKE_LIMIT_S):
                wire: Wire[ToScheduler] = await Wire.accept(sock, ToScheduler, self._tls)
                register = await self._handshake(wire)
        except (TimeoutError, OSError, EOFError, WireError, HandshakeError) as error:
            log.warning("a worker's connection failed before it joined: %s", _words_of(error))
            return
        finally:
            self._unproven.proven(task)
        try:
            await self._serve(WorkerLink(wire, register), task)
        finally:
            await wire.close()

    async def _handshake(self, wire: Wire[ToScheduler]) -> Register:
        try:
            return await admit(wire, self._cluster_key)
        except asyncio.CancelledError:
            wire.abort()  # out of time, or of its place: nothing of a stranger's is waited for
            raise
        except (OSError, EOFError, WireError, HandshakeError):
            await wire.close()
            raise

    async def _serve(self, link: WorkerLink, task: asyncio.Task[None]) -> None:
        name = link.register.machine_id
        try:
            self._check_tls(link.register)
            index = self._cluster.join(link)
        except ValueError as error:
            log.warning("machine %s refused: %s", name, error)
            link.send(Refused(str(error)))
            return
        self._links[link] = task
        self._machines[link] = index
        log.info(
            "machine %s joined the %s pool: cache of %d tokens",
            name,
            self._cluster.pools.home(name).label,
            link.register.layout.blocks * link.register.layout.block_tokens,
        )
        reason = "connection closed"
        try:
            while True:
                self._cluster.receive(index, await link.wire.receive())
        except (WireError, ValueError) as error:
            reason = str(error)
        except (OSError, EOFError):
            pass
        finally:
            del self._links[link], self._machines[link]
            if self._cluster.pools.is_draining(name):
                log.info("machine %s has left: %s", name, reason)
            elif not self._closing:
                log.warning("machine %s lost: %s", name, reason)
            self._cluster.lose(index)

    def _check_tls(self, machine: Register) -> None:
        """
        Raises:
            ValueError: caches would go to or from it as the cluster's others do not let them.
        """
        if any(each.tls != (self._tls is not None) for each in machine.addresses):
            here, there = ("with", "without") if self._tls else ("without", "with")
            raise ValueError(
                f"it takes caches in {there} TLS, this cluster runs {here}: give all machines "
                "--cluster-tls-cert and --cluster-tls-key, or none"
            )


def _words_of(error: Exception) -> str:
    return str(error) or ("timed out" if isinstance(error, TimeoutError) else "it broke off")


async def _listen(host: str, port: int) -> list[socket.socket]:
    """A listening socket on each address of ``host``, as of ``localhost``."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    listeners: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            listeners.append(socket.create_server(address, family=family, backlog=_BACKLOG))
            listeners[-1].setblocking(False)
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


async def _every(period_s: float, action: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(period_s)
        try:
            action()
        except Exception:  # a bug in one look must not keep frozen machines from being found
            log.exception("the cluster could not be looked over; it is again in a moment")
