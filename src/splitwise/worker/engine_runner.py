"""Runs a ``Machine`` over an engine: its transfer ends, and the engine's thread with its inbox.

The thread alternates between taking in messages and running iterations. Messages reach it through
the inbox: commands from the cluster scheduler (producer: the session's thread) and events of
transfers (producers: the transfer threads). What the machine has to say it says itself.
"""

from splitwise.engine.base import Engine
from splitwise.protocol.messages import Cancel, MachineStatus, RunPrompt
from splitwise.worker.ends import open_ends
from splitwise.worker.machine import Machine, TransferEvent
from splitwise.worker.options import WorkerOptions
from splitwise.worker.own_thread import OwnThread
from splitwise.worker.runner import Command, MachineFacts, MachineRunner, OpenRunner, Say


class EngineRunner(MachineRunner):
    """Our machine scheduler over an engine, on a thread of its own."""

    def __init__(self, engine: Engine, options: WorkerOptions, say: Say) -> None:
        """
        Raises:
            WorkerError: caches cannot be taken in at the address that ``options`` give.
            TlsError: a file of ``options.tls`` cannot be used.
        """
        self._thread: OwnThread[Command | TransferEvent] = OwnThread(options.cores)
        self._sender, self._receiver = open_ends(
            options, engine.memory, engine.layout, 0, 1, self._thread.put, self._thread.put
        )
        self._machine = Machine(
            engine, self._sender, self._receiver, say, options.limits, options.policy
        )
        self.facts = MachineFacts(
            engine.model, engine.layout, self._receiver.addresses, options.limits.max_decodes
        )

    async def run(self) -> None:
        await self._thread.run(self._iterate)

    def take(self, command: Command) -> None:
        if isinstance(command, Cancel):
            self._machine.note_cancel(command.task)
        elif isinstance(command, RunPrompt):
            self._machine.note_prompt(command.spec.task)
        self._thread.put(command)

    def status(self) -> MachineStatus:
        return self._machine.status()

    async def close(self) -> None:
        try:
            self._sender.close()
        finally:
            self._receiver.close()

    # The engine's thread.

    def _iterate(self) -> None:
        has_run = False
        while not self._thread.is_stopping:
            self._thread.take_in(self._machine.handle, 0 if has_run else None)
            if not self._thread.is_stopping:
                has_run = self._machine.iterate()


def opens_engine(engine: Engine, options: WorkerOptions) -> OpenRunner:
    """Opens a machine over ``engine``, which outlives the sessions, for each of them."""

    async def open_runner(say: Say) -> MachineRunner:
        return EngineRunner(engine, options, say)

    return open_runner
