"""A machine's time in a cluster: from the dial to the end of the control connection.

1. Open the machine (``runner``) with its transfer ends, dial the cluster scheduler, shake hands:
   both ends prove that they know the cluster key, and this one what its machine is.
2. Commands from the cluster scheduler are handed to the runner, which works on them beside this
   thread. What it has to say it sends itself, by the ``Outbox``; the asyncio thread only reads.
3. ``leave`` asks to be drained: the cluster scheduler sends ``Shutdown`` when nothing is left.
4. ``Shutdown``, ``stop``, a lost scheduler, or a failure of the runner ends the session; its
   requests, blocks and connections are gone on every one of these ways, the engine stays.
"""

import asyncio
import logging
import socket
import ssl
from contextlib import AsyncExitStack
from typing import Any, Final

import msgspec

from splitwise.protocol.handshake.proofs import HandshakeError
from splitwise.protocol.handshake.tls import ClusterTls
from splitwise.protocol.messages import (
    Cancel,
    Expect,
    Leave,
    Refused,
    Register,
    RunPrompt,
    Shutdown,
    ToWorker,
    Welcome,
)
from splitwise.protocol.registration import register
from splitwise.protocol.wire import Wire, WireError
from splitwise.scheduling.silence import BEAT_PERIOD_S
from splitwise.worker.options import EngineHangs, SchedulerLost, WorkerError, WorkerOptions
from splitwise.worker.outbox import Outbox, SocketOutbox, WireOutbox
from splitwise.worker.runner import MachineFacts, MachineRunner, OpenRunner

log = logging.getLogger(__name__)

CONNECT_LIMIT_S: Final = 15.0
CUT_OFF_S: Final = 10.0
"""How long the cluster scheduler's host may acknowledge nothing."""
PATIENCE_S: Final = 30.0
"""How often a worker says that it still waits for its engine."""


class Session:
    """One machine's control connection, and the runner behind it."""

    def __init__(self, open_runner: OpenRunner, options: WorkerOptions) -> None:
        """
        Raises:
            TlsError: a file of ``options.tls`` cannot be used.
        """
        self._open_runner = open_runner
        self._options = options
        self._tls = None if options.tls is None else ClusterTls(options.tls)
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
            EngineHangs: it was to end, and the engine does not.
            WorkerError: the cluster scheduler cannot be reached, or refuses this machine.
        """
        async with AsyncExitStack() as resources:
            runner = await self._open_runner(self._say)
            resources.push_async_callback(runner.close)
            wire = await self._connect()
            resources.push_async_callback(wire.close)
            await self._register(wire, runner.facts)
            self._outbox = self._open_outbox(wire)
            resources.callback(self._outbox.close)
            await self._serve(wire, self._outbox, runner)

    def _say(self, message: msgspec.Struct) -> None:
        if self._outbox is not None:  # before, nobody has given the runner anything to speak of
            self._outbox.send(message)

    @property
    def _address(self) -> str:
        return f"{self._options.join_host}:{self._options.join_port}"

    async def _connect(self) -> Wire[ToWorker]:
        options = self._options
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                return await Wire.dial(options.join_host, options.join_port, ToWorker, self._tls)
        except ssl.SSLError as error:
            raise WorkerError(
                f"--join {self._address}: no TLS with the cluster scheduler ({error}): is it given "
                "--cluster-tls-cert, too, and signed by --cluster-tls-ca?"
            ) from error
        except (OSError, TimeoutError) as error:
            raise WorkerError(
                f"--join {self._address}: no cluster scheduler answers there "
                f"({error or 'timed out'}); start the gateway first and name its worker port"
            ) from error

    async def _register(self, wire: Wire[ToWorker], facts: MachineFacts) -> None:
        options = self._options
        machine = Register(
            options.machine_id,
            options.pool,
            facts.model,
            facts.layout,
            facts.addresses,
            facts.max_decodes,
        )
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                answer = await register(wire, options.cluster_key, machine)
        except HandshakeError as error:
            raise WorkerError(f"--join {self._address}: {error}") from error
        except (OSError, EOFError, WireError) as error:
            raise WorkerError(
                f"--join {self._address}: the cluster scheduler broke off the handshake "
                f"({error or 'timed out'}); look into its log, and whether both sides are given "
                "--cluster-tls-cert or neither"
            ) from error
        if isinstance(answer, Refused):
            raise WorkerError(f"the cluster refused this machine: {answer.reason}")
        if not isinstance(answer, Welcome):
            raise WorkerError(f"expected a welcome from the scheduler, got {answer}")

    def _open_outbox(self, wire: Wire[ToWorker]) -> Outbox:
        sock = wire.second_socket()
        # A status goes out every moment: where none is acknowledged, the way or the host is gone.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(CUT_OFF_S * 1000))
        if self._tls is None:
            return SocketOutbox(sock, CUT_OFF_S)
        sock.close()
        return WireOutbox(wire)

    async def _serve(self, wire: Wire[ToWorker], outbox: Outbox, runner: MachineRunner) -> None:
        run = asyncio.create_task(runner.run())
        listen = asyncio.create_task(self._listen(wire, runner))
        beat = asyncio.create_task(self._beat(outbox, runner))
        stop = asyncio.create_task(self._stop.wait())
        ends: list[asyncio.Task[Any]] = [run, listen, beat, stop]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.wait(ends[1:])
            await _until_idle(run, runner, self._options.max_stall_s)
        for end in ends:
            if not end.cancelled():
                end.result()

    async def _listen(self, wire: Wire[ToWorker], runner: MachineRunner) -> None:
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
            if isinstance(message, RunPrompt | Expect | Cancel):
                runner.take(message)

    async def _beat(self, outbox: Outbox, runner: MachineRunner) -> None:
        while True:
            outbox.send(runner.status())
            await asyncio.sleep(BEAT_PERIOD_S)


async def _until_idle(run: asyncio.Task[None], runner: MachineRunner, max_stall_s: float) -> None:
    """Wait for what still runs of the machine: until it ends the cache is the engine's, however
    long, as long as it gets on.

    Raises:
        EngineHangs: it does not.
    """
    loop = asyncio.get_running_loop()
    steps, moved_s = runner.status().steps, loop.time()
    while not run.done():
        await asyncio.wait([run], timeout=min(PATIENCE_S, max_stall_s))
        if run.done():
            return
        if steps != (steps := runner.status().steps):
            moved_s = loop.time()
        if loop.time() - moved_s >= max_stall_s:
            raise EngineHangs(f"the engine has done nothing for {max_stall_s:g} s; look at it")
        log.warning("still waiting for the engine's iteration to end")
