"""Starts workers, watches them, and ends them; ``LocalLauncher`` as processes of this host.

A worker's standard error is passed on line by line and its end is kept, so that a worker that
cannot start says why in the parent. Workers run in process groups of their own: Ctrl-C reaches
the parent alone, which then ends them in order. Should the parent be killed, the kernel ends them.
"""

import asyncio
import ctypes
import logging
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Coroutine
from typing import Any, Final

import msgspec

from splitwise.scheduling.pool import Pool

log = logging.getLogger(__name__)

STOP_LIMIT_S: Final = 10.0
KEPT_LINES: Final = 20
WORKER_VARIABLES: Final = frozenset({"SPLITWISE_CACHE", "SPLITWISE_FAULTS"})
"""Of our own variables those that a worker reads. The others are the gateway's options and
secrets, which are none of its business."""
FOREIGN_SECRETS: Final = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})
"""The gateway has the model already."""
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


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
        self._watchers: dict[str, asyncio.Task[str]] = {}
        """By machine id, what ends with the worker; the result says how that ended."""
        self._started = asyncio.Event()

    @abstractmethod
    async def start(self, specs: list[WorkerSpec]) -> None:
        """Start one worker a spec; they register by themselves."""

    @abstractmethod
    def kill(self, machine_id: str) -> None:
        """End a worker that does not answer, if it is one of ours, at once."""

    @abstractmethod
    async def stop(self) -> None:
        """End every worker and wait until it has ended."""

    async def wait_for_exit(self) -> tuple[str, str]:
        """Wait until a worker ends; returns its machine id, and how it ended with what last words.

        A worker's end is told once.
        """
        while not self._watchers:
            self._started.clear()
            await self._started.wait()
        watchers = {task: machine_id for machine_id, task in self._watchers.items()}
        done, _ = await asyncio.wait(watchers, return_when=asyncio.FIRST_COMPLETED)
        ended = next(iter(done))
        del self._watchers[watchers[ended]]
        return watchers[ended], ended.result()

    def _watch(self, machine_id: str, life: Coroutine[Any, Any, str]) -> None:
        self._watchers[machine_id] = asyncio.create_task(life)
        self._started.set()


class LocalLauncher(Launcher):
    """Workers as processes of this host."""

    def __init__(self, cluster_key: str) -> None:
        super().__init__()
        self._cluster_key = cluster_key
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, specs: list[WorkerSpec]) -> None:
        for spec in specs:
            process = await asyncio.create_subprocess_exec(
                *worker_command(spec),
                env=worker_environment(spec, self._cluster_key),
                stdin=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
            self._processes[spec.machine_id] = process
            self._watch(spec.machine_id, _relay(process))

    def kill(self, machine_id: str) -> None:
        process = self._processes.get(machine_id)
        if process is not None and process.returncode is None:
            process.kill()

    async def stop(self) -> None:
        for process in self._processes.values():
            if process.returncode is None:
                process.terminate()
        waits = [asyncio.create_task(p.wait()) for p in self._processes.values()]
        if not waits:
            return
        _, late = await asyncio.wait(waits, timeout=STOP_LIMIT_S)
        if late:
            for process in self._processes.values():
                if process.returncode is None:
                    log.warning("worker %d did not end in time and is killed", process.pid)
                    process.kill()
            await asyncio.wait(late)
        await asyncio.gather(*self._watchers.values())


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


async def _relay(process: asyncio.subprocess.Process) -> str:
    """Pass a worker's standard error on; returns how it ended."""
    last_words: deque[str] = deque(maxlen=KEPT_LINES)
    assert process.stderr is not None
    async for line in process.stderr:
        text = line.decode(errors="replace").rstrip()
        last_words.append(text)
        print(text, file=sys.stderr, flush=True)
    code = await process.wait()
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{how}: {last_words[-1] if last_words else 'no output'}"


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
