"""A machine's time in a cluster: from the dial to the end of the control connection.

1. Open the transfer endpoints, dial the cluster scheduler, prove the cluster key, register.
2. The engine thread alternates between taking in messages and running iterations. Messages reach
   it through ``_inbox``: commands from the cluster scheduler (producer: the asyncio thread) and
   events of transfers (producer: the transfer threads). What the machine has to say it sends
   itself, by the ``Outbox``; the asyncio thread only reads.
3. ``leave`` asks to be drained: the cluster scheduler sends ``Shutdown`` when nothing is left.
4. ``Shutdown``, ``stop``, a lost scheduler, or a failure of the engine thread ends the session;
   its requests, blocks and connections are gone on every one of these ways, the engine stays.
"""

import asyncio
import logging
import os
import queue
import socket
import threading
from contextlib import ExitStack
from typing import Any, Final

import msgspec

from splitwise.engine.base import Engine
from splitwise.protocol.messages import (
    Cancel,
    Challenge,
    Expect,
    Leave,
    Refused,
    Register,
    RunPrompt,
    Shutdown,
    ToWorker,
    Welcome,
)
from splitwise.protocol.wire import Wire, WireError, prove
from splitwise.scheduling.pool import Pool
from splitwise.transfer import KVReceiver, KVSender
from splitwise.worker.machine import Command, Machine, MachineLimits, TransferEvent
from splitwise.worker.outbox import Outbox

log = logging.getLogger(__name__)

CONNECT_LIMIT_S: Final = 15.0
STATUS_PERIOD_S: Final = 1.0
CUT_OFF_S: Final = 10.0
"""How long the cluster scheduler's host may acknowledge nothing."""
PATIENCE_S: Final = 30.0
"""How often a worker says that it still waits for its engine."""


class WorkerError(Exception):
    """The worker cannot run; the message says why and what to do."""


class SchedulerLost(WorkerError):
    """The worker was part of the cluster, and its scheduler is gone."""


class WorkerOptions(msgspec.Struct, frozen=True):
    """How a worker is to run its machine."""

    machine_id: str
    pool: Pool
    join_host: str
    join_port: int
    cluster_key: str
    host: str = "127.0.0.1"
    """Where this machine takes caches in."""
    transfer_port: int = 0
    """The port for that; 0 picks a free one."""
    announce: tuple[str, int] | None = None
    """The address under which others dial that, where it is another."""
    rejoin_s: float = 0.0
    """How long to dial again when the cluster scheduler is lost."""
    transport: str | None = None
    """Force this transport; None chooses by what both ends can do."""
    checksum: bool = False
    cores: list[int] = []
    """Where the engine's thread stays, so that workers on one host do not fight over cores; empty
    lets it roam. Transfers and control messages take whichever core is idle."""
    limits: MachineLimits = MachineLimits()


class Session:
    """One machine's control connection, inbox and engine thread."""

    def __init__(self, engine: Engine, options: WorkerOptions) -> None:
        self._engine = engine
        self._options = options
        self._inbox: queue.SimpleQueue[Command | TransferEvent | Shutdown] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._outbox: Outbox | None = None
        self._stop = asyncio.Event()

    def leave(self) -> None:
        """Ask to be drained; a machine that is in no cluster yet stops at once."""
        if self._outbox is None:
            self.stop()
        else:
            self._outbox.send(Leave())

    def stop(self) -> None:
        """End now; the requests go on elsewhere."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until told to stop.

        Raises:
            SchedulerLost: the cluster scheduler is gone.
            WorkerError: it cannot be reached, or refuses this machine.
        """
        options = self._options
        with ExitStack() as resources:
            receiver = self._open_receiver()
            resources.callback(receiver.close)
            sender = KVSender(
                self._engine.memory,
                self._engine.layout,
                options.machine_id,
                options.cluster_key,
                on_event=self._inbox.put,
                transport=options.transport,
                checksum=options.checksum,
            )
            resources.callback(sender.close)
            wire = await self._connect()
            try:
                try:
                    await self._register(wire, receiver)
                except (OSError, EOFError, WireError) as error:
                    raise WorkerError(
                        f"the cluster scheduler broke off the handshake ({error or 'timed out'}); "
                        "look into its log"
                    ) from error
                outbox = self._outbox = self._open_outbox(wire)
                resources.callback(outbox.close)
                await self._serve(wire, outbox, sender, receiver)
            finally:
                await wire.close()

    def _open_receiver(self) -> KVReceiver:
        options = self._options
        try:
            receiver = KVReceiver(
                self._engine.memory,
                self._engine.layout,
                options.machine_id,
                options.cluster_key,
                on_event=self._inbox.put,
                host=options.host,
                port=options.transfer_port,
                announce=options.announce,
            )
        except OSError as error:
            raise WorkerError(
                f"--host {options.host}, --transfer-port {options.transfer_port}: cannot listen "
                f"there ({error}); give an address of this machine that the others reach, and a "
                "free port"
            ) from error
        address = receiver.address
        log.info(
            "caches are taken in at %s:%d by %s",
            address.host,
            address.port,
            ", ".join(address.transports),
        )
        return receiver

    async def _connect(self) -> Wire[ToWorker]:
        host, port = self._options.join_host, self._options.join_port
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                return await Wire.dial(host, port, ToWorker)
        except (OSError, TimeoutError) as error:
            raise WorkerError(
                f"--join {host}:{port}: no cluster scheduler answers there "
                f"({error or 'timed out'}); start the gateway first and name its worker port"
            ) from error

    async def _register(self, wire: Wire[ToWorker], receiver: KVReceiver) -> None:
        options = self._options
        async with asyncio.timeout(CONNECT_LIMIT_S):
            challenge = await wire.receive()
            if not isinstance(challenge, Challenge):
                raise WorkerError(f"expected a challenge from the scheduler, got {challenge}")
            wire.send(
                Register(
                    machine_id=options.machine_id,
                    pool=options.pool,
                    proof=prove(options.cluster_key, challenge.nonce, options.machine_id),
                    model=self._engine.model,
                    layout=self._engine.layout,
                    address=receiver.address,
                )
            )
            answer = await wire.receive()
        if isinstance(answer, Refused):
            raise WorkerError(f"the cluster refused this machine: {answer.reason}")
        if not isinstance(answer, Welcome):
            raise WorkerError(f"expected a welcome from the scheduler, got {answer}")

    def _open_outbox(self, wire: Wire[ToWorker]) -> Outbox:
        sock = wire.second_socket()
        # A status goes out every second: where none is acknowledged, the way or the host is gone.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(CUT_OFF_S * 1000))
        return Outbox(sock, CUT_OFF_S)

    async def _serve(
        self, wire: Wire[ToWorker], outbox: Outbox, sender: KVSender, receiver: KVReceiver
    ) -> None:
        machine = Machine(self._engine, sender, receiver, outbox.send, self._options.limits)
        engine = asyncio.get_running_loop().run_in_executor(None, self._engine_loop, machine)
        listen = asyncio.create_task(self._listen(wire, machine))
        beat = asyncio.create_task(self._beat(outbox, machine))
        stop = asyncio.create_task(self._stop.wait())
        ends: list[asyncio.Future[Any]] = [engine, listen, beat, stop]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stopping.set()
            self._inbox.put(Shutdown())
            for task in (listen, beat, stop):
                task.cancel()
            await asyncio.gather(listen, beat, stop, return_exceptions=True)
            await _until_idle(engine)
        if not listen.cancelled():
            listen.result()

    async def _listen(self, wire: Wire[ToWorker], machine: Machine) -> None:
        """Take commands until told to stop.

        Raises:
            SchedulerLost: the connection is.
        """
        while True:
            try:
                message = await wire.receive()
            except (OSError, EOFError, WireError) as error:
                raise SchedulerLost(f"the cluster scheduler is gone ({error})") from error
            if isinstance(message, Shutdown):
                return
            if isinstance(message, Cancel):
                machine.note_cancel(message.task)
            if isinstance(message, RunPrompt | Expect | Cancel):
                self._inbox.put(message)

    async def _beat(self, outbox: Outbox, machine: Machine) -> None:
        while True:
            outbox.send(machine.status())
            await asyncio.sleep(STATUS_PERIOD_S)

    def _engine_loop(self, machine: Machine) -> None:
        if self._options.cores:
            os.sched_setaffinity(0, self._options.cores)  # this thread, and those it starts
        has_run = False
        while not self._stopping.is_set():
            self._drain(machine, wait=not has_run)
            if not self._stopping.is_set():
                has_run = machine.iterate()

    def _drain(self, machine: Machine, wait: bool) -> None:
        """Take in all messages; with ``wait``, wait for one first."""
        try:
            message = self._inbox.get(block=wait)
            while not isinstance(message, Shutdown):
                machine.handle(message)
                message = self._inbox.get(block=False)
        except queue.Empty:
            return


async def _until_idle(engine: "asyncio.Future[None]") -> None:
    """Wait for the iteration that runs: until it ends the cache is the engine's, however long."""
    while not engine.done():
        await asyncio.wait([engine], timeout=PATIENCE_S)
        if not engine.done():
            log.warning("still waiting for the engine's iteration to end")
    engine.result()
