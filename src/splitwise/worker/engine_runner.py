"""Runs a ``Machine`` over an engine: its transfer ends, its inbox, and the engine's thread.

The thread alternates between taking in messages and running iterations. Messages reach it through
``_inbox``: commands from the cluster scheduler (producer: the session's thread) and events of
transfers (producers: the transfer threads). What the machine has to say it says itself.
"""

import asyncio
import os
import queue
import threading

from splitwise.engine.base import Engine
from splitwise.protocol.messages import Cancel, MachineStatus, RunPrompt
from splitwise.worker.ends import open_ends
from splitwise.worker.machine import Machine, TransferEvent
from splitwise.worker.options import WorkerOptions
from splitwise.worker.runner import Command, MachineFacts, MachineRunner, OpenRunner, Say


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
        self._sender, self._receiver = open_ends(
            options, engine.memory, engine.layout, 0, 1, self._inbox.put, self._inbox.put
        )
        self._machine = Machine(
            engine, self._sender, self._receiver, say, options.limits, options.policy
        )
        self.facts = MachineFacts(
            engine.model, engine.layout, self._receiver.addresses, options.limits.max_decodes
        )

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
        try:
            self._sender.close()
        finally:
            self._receiver.close()

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
