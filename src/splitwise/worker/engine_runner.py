"""Runs a ``Machine`` over an engine: its transfer ends, its inbox, and the engine's thread.

The thread alternates between taking in messages and running iterations. Messages reach it through
``_inbox``: commands from the cluster scheduler (producer: the session's thread) and events of
transfers (producers: the transfer threads). What the machine has to say it says itself.
"""

import asyncio
import logging
import os
import queue
import threading
from contextlib import ExitStack

from splitwise.engine.base import Engine
from splitwise.protocol.handshake.tls import ClusterTls
from splitwise.protocol.messages import Cancel, MachineStatus, RunPrompt
from splitwise.transfer import KVReceiver, KVSender, MachineReceiver, MachineSender
from splitwise.transfer.events import OnReceiverEvent, OnSenderEvent
from splitwise.worker.machine import Machine, TransferEvent
from splitwise.worker.options import WorkerError, WorkerOptions
from splitwise.worker.runner import Command, MachineFacts, MachineRunner, OpenRunner, Say

log = logging.getLogger(__name__)


class EngineRunner(MachineRunner):
    """Our machine scheduler over an engine, on a thread of its own."""

    def __init__(self, engine: Engine, options: WorkerOptions, say: Say) -> None:
        """
        Raises:
            WorkerError: caches cannot be taken in at the address that ``options`` give.
            TlsError: a file of ``options.tls`` cannot be used.
        """
        self._cores = options.cores
        self._inbox: queue.SimpleQueue[Command | TransferEvent | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._tls = None if options.tls is None else ClusterTls(options.tls)
        with ExitStack() as resources:
            receiver = self._open_receiver(engine, options)
            resources.callback(receiver.close)
            sender = self._make_sender(engine, options)
            resources.callback(sender.close)
            self._machine = Machine(engine, sender, receiver, say, options.limits, options.policy)
            self._ends = resources.pop_all()
        self.facts = MachineFacts(
            engine.model, engine.layout, receiver.addresses, options.limits.max_decodes
        )

    def _make_sender(self, engine: Engine, options: WorkerOptions) -> MachineSender:
        def of_rank(rank_id: str, _: int, on_event: OnSenderEvent) -> KVSender:
            return KVSender(
                engine.memory,
                engine.layout,
                rank_id,
                options.cluster_key,
                on_event,
                transport=options.transport,
                checksum=options.checksum,
                tls=self._tls,
                deadlines=options.deadlines,
            )

        heads, inbox = engine.layout.all_heads, self._inbox.put
        return MachineSender(heads, 1, of_rank, options.machine_id, inbox)

    def _open_receiver(self, engine: Engine, options: WorkerOptions) -> MachineReceiver:
        def of_rank(rank_id: str, _: int, on_event: OnReceiverEvent) -> KVReceiver:
            return KVReceiver(
                engine.memory,
                engine.layout,
                rank_id,
                options.cluster_key,
                on_event,
                host=options.host,
                port=options.transfer_port,
                announce=options.announce,
                sends=options.transport,
                tls=self._tls,
                deadlines=options.deadlines,
            )

        heads, inbox = engine.layout.all_heads, self._inbox.put
        try:
            receiver = MachineReceiver(heads, 1, of_rank, options.machine_id, inbox)
        except OSError as error:
            raise WorkerError(
                f"--host {options.host}, --transfer-port {options.transfer_port}: cannot listen "
                f"there ({error}); give an address of this machine that the others reach, and a "
                "free port"
            ) from error
        [address] = receiver.addresses
        log.info(
            "caches are taken in at %s:%d by %s",
            address.host,
            address.port,
            ", ".join(address.transports),
        )
        return receiver

    async def run(self) -> None:
        thread = asyncio.get_running_loop().run_in_executor(None, self._iterate)
        try:
            await asyncio.shield(thread)
        finally:
            self._stopping.set()
            self._inbox.put(None)
            await thread

    def take(self, command: Command) -> None:
        if isinstance(command, Cancel):
            self._machine.note_cancel(command.task)
        elif isinstance(command, RunPrompt):
            self._machine.note_prompt(command.spec.task)
        self._inbox.put(command)

    def status(self) -> MachineStatus:
        return self._machine.status()

    async def close(self) -> None:
        self._ends.close()

    # The engine's thread.

    def _iterate(self) -> None:
        if self._cores:
            os.sched_setaffinity(0, self._cores)  # this thread, and those it starts
        has_run = False
        while not self._stopping.is_set():
            self._drain(wait=not has_run)
            if not self._stopping.is_set():
                has_run = self._machine.iterate()

    def _drain(self, wait: bool) -> None:
        """Take in all messages; with ``wait``, wait for one first. None only wakes."""
        try:
            message = self._inbox.get(block=wait)
            while message is not None:
                self._machine.handle(message)
                message = self._inbox.get(block=False)
        except queue.Empty:
            return


def opens_engine(engine: Engine, options: WorkerOptions) -> OpenRunner:
    """Opens a machine over ``engine``, which outlives the sessions, for each of them."""

    async def open_runner(say: Say) -> MachineRunner:
        return EngineRunner(engine, options, say)

    return open_runner
