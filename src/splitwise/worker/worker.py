"""A worker: the process that runs one machine.

1. The engine is built once (weights, cache); it outlives the connections.
2. A ``Session`` joins the cluster and serves. Where its scheduler is lost, the worker dials again
   for ``rejoin_s`` and comes back as the same machine, empty.
3. An engine that hangs when the session is over ends the process: nothing else can end it.
4. SIGTERM (or Ctrl-C) asks the cluster to drain this machine, and a second one ends it at once.
"""

import asyncio
import logging
import os
import random
import signal
import sys
from typing import Final

from splitwise.collector import spare_collector
from splitwise.engine.base import Engine
from splitwise.engine.faulty import with_faults
from splitwise.worker.engine_runner import opens_engine
from splitwise.worker.options import EngineHangs, SchedulerLost, WorkerError, WorkerOptions
from splitwise.worker.runner import OpenRunner
from splitwise.worker.session import Session
from splitwise.worker.trial import EngineFailed

log = logging.getLogger(__name__)

REDIAL_S: Final = 1.0
THREAD_SWITCH_S: Final = 0.0005
"""The engine's thread yields the interpreter this often (Python's default is ten times longer), so
that a cancel or a transfer does not wait for it."""


class Worker:
    """One machine's process."""

    def __init__(self, open_runner: OpenRunner, options: WorkerOptions) -> None:
        self._open_runner = open_runner
        self._options = options
        self._session: Session | None = None
        self._leaving = asyncio.Event()

    async def run(self) -> None:
        """Serve until told to stop.

        Raises:
            EngineHangs: the session is over, but what its engine computes is not.
            WorkerError: the cluster scheduler cannot be reached, refuses this machine, or is gone
                for longer than ``rejoin_s``; or the engine fails whatever it is given.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        patience_ends_s = 0.0
        while not self._leaving.is_set():
            self._session = Session(self._open_runner, self._options)
            try:
                return await self._session.run()
            except EngineFailed as failed:
                raise WorkerError(str(failed)) from failed
            except EngineHangs:
                raise
            except SchedulerLost as lost:
                patience_ends_s = _now_s() + self._options.rejoin_s
                reason = str(lost)
            except WorkerError as error:
                if _now_s() >= patience_ends_s:
                    raise
                reason = str(error)
            if _now_s() >= patience_ends_s:
                raise WorkerError(f"{reason}; this worker ends")
            log.warning("%s; dialling again", reason)
            await self._pause()

    def _on_signal(self) -> None:
        is_second = self._leaving.is_set()
        self._leaving.set()
        if self._session is not None:
            (self._session.stop if is_second else self._session.leave)()

    async def _pause(self) -> None:
        """Machines that lost the same scheduler do not all come back in one moment."""
        try:
            async with asyncio.timeout(REDIAL_S * random.uniform(0.5, 1.5)):
                await self._leaving.wait()
        except TimeoutError:
            return


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def run_worker(engine: Engine, options: WorkerOptions) -> None:
    """Run a worker whose iterations we compose until it is told to stop; closes the engine.

    Raises:
        WorkerError, TlsError: see ``run_machine``.
    """
    try:
        run_machine(opens_engine(with_faults(engine, options.machine_id), options), options)
    finally:
        engine.close()


def run_machine(open_runner: OpenRunner, options: WorkerOptions) -> None:
    """Run a worker in this process until it is told to stop.

    Raises:
        WorkerError: see ``Worker.run``.
        TlsError: a file of ``options.tls`` cannot be used.
    """
    import uvloop

    sys.setswitchinterval(THREAD_SWITCH_S)
    spare_collector()
    uvloop.run(_run(open_runner, options))


async def _run(open_runner: OpenRunner, options: WorkerOptions) -> None:
    try:
        await Worker(open_runner, options).run()
    except EngineHangs as hangs:
        log.critical("%s; this worker ends", hangs)
        os._exit(1)  # any other way out waits for the engine's thread
