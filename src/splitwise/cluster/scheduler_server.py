"""Where workers dial in: the cluster scheduler's end of the control connections.

The life of a connection:

1. The scheduler sends a ``Challenge``; the worker answers with ``Register``, which proves the
   cluster key. What does not fit is ``Refused`` with a reason.
2. ``Welcome``; the machine is in the cluster. Messages go both ways.
3. The connection ends, or stays silent for ``SILENCE_LIMIT_S``: the machine is lost.
"""

import asyncio
import hmac
import logging
import os
import time
from collections.abc import Callable, Collection
from typing import Final

import msgspec

from splitwise.cluster.scheduler import ClusterScheduler
from splitwise.protocol.messages import (
    PROTOCOL_VERSION,
    Challenge,
    Refused,
    Register,
    Shutdown,
    ToScheduler,
)
from splitwise.protocol.wire import HANDSHAKE_LIMIT_BYTES, Wire, WireError, prove

log = logging.getLogger(__name__)

HANDSHAKE_LIMIT_S: Final = 10.0
SILENCE_LIMIT_S: Final = 5.0
"""A machine reports every second."""
CHECK_PERIOD_S: Final = 1.0


class WorkerLink:
    """A registered worker's connection (``roster.MachineLink``)."""

    def __init__(self, wire: Wire[ToScheduler], register: Register) -> None:
        self.wire = wire
        self.register = register

    def send(self, message: msgspec.Struct) -> None:
        self.wire.send(message)


class SchedulerServer:
    """Accepts workers into a cluster."""

    def __init__(
        self,
        cluster: ClusterScheduler,
        cluster_key: str,
        on_silent: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``on_silent`` gets the id of each machine that is lost because it said nothing."""
        self._cluster = cluster
        self._on_silent = on_silent
        self._cluster_key = cluster_key
        self._links: dict[WorkerLink, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._closing = False

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; returns the address that workers dial."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Wire(ToScheduler, self._on_connect), host, port
        )
        self._tasks.add(asyncio.create_task(self._watch_clock()))
        bound = self._server.sockets[0].getsockname()
        return bound[0], bound[1]

    async def close(self, ours: Collection[str]) -> None:
        """Tell the workers ``ours`` to end and wait until their connections have; hang up on all
        others, who may dial again once there is a scheduler."""
        self._closing = True
        if self._server is not None:
            self._server.close()
        ending = [link for link in self._links if link.register.machine_id in ours]
        for link in ending:
            link.send(Shutdown())
        if ending:
            connections = [self._links[link] for link in ending]
            await asyncio.wait(connections, timeout=HANDSHAKE_LIMIT_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch_clock(self) -> None:
        while True:
            await asyncio.sleep(CHECK_PERIOD_S)
            try:
                self._give_up_silent()
                self._cluster.fail_overdue(time.monotonic())
            except Exception:  # a bug in one must not keep frozen machines from being found
                log.exception("the cluster could not be looked over; it is again in a moment")

    def _give_up_silent(self) -> None:
        silent_since_s = asyncio.get_running_loop().time() - SILENCE_LIMIT_S
        for link in self._links:
            if link.wire.heard_s < silent_since_s:
                link.wire.fail(WireError(f"silent for {SILENCE_LIMIT_S:g} s"))
                self._on_silent(link.register.machine_id)

    def _on_connect(self, wire: Wire[ToScheduler]) -> None:
        self._tasks.add(asyncio.create_task(self._converse(wire)))

    async def _converse(self, wire: Wire[ToScheduler]) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            link = await asyncio.wait_for(self._handshake(wire), HANDSHAKE_LIMIT_S)
            if link is not None:
                await self._serve(link, task)
        except (TimeoutError, OSError, EOFError, WireError) as error:
            log.warning("a worker's connection failed before it joined: %s", error or "timed out")
        finally:
            self._tasks.discard(task)
            await wire.close()

    async def _handshake(self, wire: Wire[ToScheduler]) -> WorkerLink | None:
        nonce = os.urandom(16)
        wire.send(Challenge(nonce))
        register = await wire.receive(HANDSHAKE_LIMIT_BYTES)
        if not isinstance(register, Register):
            wire.send(Refused("the first message must be Register"))
            return None
        expected = prove(self._cluster_key, nonce, register.machine_id)
        if not hmac.compare_digest(expected, register.proof):
            wire.send(Refused("wrong cluster key; set SPLITWISE_CLUSTER_KEY to the cluster's"))
            return None
        if register.version != PROTOCOL_VERSION:
            wire.send(
                Refused(
                    f"protocol version {register.version}, the cluster speaks {PROTOCOL_VERSION}; "
                    "install the same version of splitwise everywhere"
                )
            )
            return None
        return WorkerLink(wire, register)

    async def _serve(self, link: WorkerLink, task: asyncio.Task[None]) -> None:
        name = link.register.machine_id
        try:
            index = self._cluster.join(link)
        except ValueError as error:
            log.warning("machine %s refused: %s", name, error)
            link.send(Refused(str(error)))
            return
        self._links[link] = task
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
            del self._links[link]
            if self._cluster.pools.is_draining(name):
                log.info("machine %s has left: %s", name, reason)
            elif not self._closing:
                log.warning("machine %s lost: %s", name, reason)
            self._cluster.lose(index)
