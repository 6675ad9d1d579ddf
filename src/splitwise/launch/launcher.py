"""Starts workers, watches them, and ends them; ``LocalLauncher`` as processes of this host.

The life of a worker here:

1. ``start``: from now on a task of its own watches it (``_watch``).
2. The task ends with the worker, or fails: either is put into ``_exits`` (producer: ``_note_end``,
   consumer: ``wait_for_exit``), where it waits until somebody asks.
3. It may be started again under its id, before or after its end is told.
4. ``stop`` ends all that run.
"""

import asyncio
import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final

import msgspec

from splitwise.launch.worker_process import WorkerProcess, start_process
from splitwise.scheduling.pool import Pool

log = logging.getLogger(__name__)

STOP_LIMIT_S: Final = 10.0
"""What workers have to end in when they are asked to."""
KILL_LIMIT_S: Final = 5.0
"""And the kernel, when they are killed: a process that waits for a device may take for ever."""
WORKER_VARIABLES: Final = frozenset({"SPLITWISE_CACHE", "SPLITWISE_FAULTS"})
"""Of our own variables those that a worker reads. The others are the gateway's options and
secrets, which are none of its business."""
FOREIGN_SECRETS: Final = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})
"""The gateway has the model already."""


class LaunchError(Exception):
    """A worker could not be started; the message carries its own last words."""


class WorkerSpec(msgspec.Struct, frozen=True):
    """What the launcher must know to start one worker."""

    machine_id: str
    pool: Pool
    threads: int
    cores: list[int]
    arguments: list[str]
    """Command-line arguments that all workers of the cluster share."""


class Launcher(ABC):
    """Where workers run."""

    def __init__(self) -> None:
        self._watches: dict[asyncio.Task[str], str] = {}
        """What ends with each worker that runs, and says how that ended; the machine ids."""
        self._exits: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    @abstractmethod
    async def start(self, specs: list[WorkerSpec]) -> None:
        """Start one worker a spec; they register by themselves."""

    @abstractmethod
    def kill(self, machine_id: str) -> None:
        """End a worker that does not answer, if it is one of ours, at once."""

    @abstractmethod
    async def stop(self) -> None:
        """End every worker and wait until it has ended, for a limited time."""

    async def wait_for_exit(self) -> tuple[str, str]:
        """Wait until a worker ends; returns its machine id, and how it ended with what last words.

        Each end is told once, also one that came before anybody asked.
        """
        return await self._exits.get()

    def _watch(self, machine_id: str, life: Coroutine[Any, Any, str]) -> None:
        """Have ``life`` run; its end, or failure, is the worker's."""
        watch = asyncio.create_task(life)
        self._watches[watch] = machine_id
        watch.add_done_callback(partial(self._note_end, machine_id))

    def _note_end(self, machine_id: str, watch: asyncio.Task[str]) -> None:
        del self._watches[watch]
        if watch.cancelled():
            how = "it is watched no more"
        elif (error := watch.exception()) is not None:
            log.error("the watch of worker %s failed", machine_id, exc_info=error)
            how = f"its watch failed: {error}"
        else:
            how = watch.result()
        self._exits.put_nowait((machine_id, how))

    async def _running_after(self, limit_s: float) -> dict[str, asyncio.Task[str]]:
        """The watches of those who still run after ``limit_s``, or nobody as soon as all ended."""
        watches = dict(self._watches)
        if not watches:
            return {}
        _, late = await asyncio.wait(watches, timeout=limit_s)
        return {watches[watch]: watch for watch in late}


class LocalLauncher(Launcher):
    """Workers as processes of this host."""

    def __init__(self, cluster_key: str) -> None:
        super().__init__()
        self._cluster_key = cluster_key
        self._processes: dict[str, WorkerProcess] = {}

    async def start(self, specs: list[WorkerSpec]) -> None:
        for spec in specs:
            process = await start_process(
                worker_command(spec), worker_environment(spec, self._cluster_key)
            )
            self._processes[spec.machine_id] = process
            self._watch(spec.machine_id, process.until_end())

    def kill(self, machine_id: str) -> None:
        if machine_id in self._processes:
            self._processes[machine_id].kill()

    async def stop(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for machine_id in await self._running_after(STOP_LIMIT_S):
            log.warning("worker %s did not end in time and is killed", machine_id)
            self.kill(machine_id)
        for machine_id in await self._running_after(KILL_LIMIT_S):
            log.error("worker %s cannot be killed and is left behind", machine_id)


def worker_command(spec: WorkerSpec) -> list[str]:
    """The command line of a worker."""
    return [
        sys.executable,
        "-m",
        "splitwise.cli.main",
        "worker",
        f"--machine-id={spec.machine_id}",
        f"--role={spec.pool.label}",
        f"--cores={','.join(map(str, spec.cores))}",
        "--rejoin-s=0",  # it ends with its gateway
        *spec.arguments,
    ]


def worker_environment(spec: WorkerSpec, cluster_key: str) -> dict[str, str]:
    """The cluster key goes by the environment, where other users of the host do not see it."""
    threads = str(spec.threads)
    inherited = {name: value for name, value in os.environ.items() if _is_for_workers(name)}
    return inherited | {
        "SPLITWISE_CLUSTER_KEY": cluster_key,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "NUMBA_NUM_THREADS": threads,
    }


def _is_for_workers(variable: str) -> bool:
    if variable.startswith("SPLITWISE_"):
        return variable in WORKER_VARIABLES
    return variable not in FOREIGN_SECRETS


def assign_cores(workers: int, threads: int) -> list[list[int]]:
    """Cores of each worker: its own ones, in turn, where the host has enough; else all of them."""
    cores = sorted(os.sched_getaffinity(0))
    if workers * threads > len(cores):
        return [[] for _ in range(workers)]
    return [cores[i * threads : (i + 1) * threads] for i in range(workers)]
