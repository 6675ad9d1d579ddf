"""A gateway and workers as on hosts of their own: each behind proxies, started again when killed.

``Harm`` is what may befall a worker, at any moment. Workers are children of this process, as a
supervisor's are, so the gateway neither starts nor ends them.
"""

import asyncio
import os
import random
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import IO

from tcp_proxy import TcpProxy

COMMAND = [sys.executable, "-m", "splitwise.cli.main"]
START_LIMIT_S = 300.0
RESTART_S = 0.5
ENVIRONMENT = {
    "SPLITWISE_CLUSTER_KEY": "a key of the chaos run",
    "PYTHONUNBUFFERED": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}


class Harm(StrEnum):
    KILL = "killed"
    FREEZE = "frozen"
    CUT = "cut off"
    BREAK = "connections broken"
    CORRUPT = "transfer corrupted"


@dataclass
class ChaosWorker:
    """A worker, its proxies, and its process of the moment."""

    name: str
    arguments: list[str]
    control: TcpProxy
    caches: TcpProxy
    log: IO[bytes]
    process: asyncio.subprocess.Process | None = None
    keeper: "asyncio.Task[None] | None" = None

    async def keep_running(self) -> None:
        """Start it, and again whenever it ends."""
        while True:
            self.process = await asyncio.create_subprocess_exec(
                *COMMAND,
                *self.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stderr=self.log,
                env=os.environ | ENVIRONMENT,
            )
            await self.process.wait()
            await asyncio.sleep(RESTART_S)

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)

    async def stop(self) -> None:
        if self.keeper is not None:
            self.keeper.cancel()
        self.signal(signal.SIGKILL)
        if self.process is not None:
            await self.process.wait()
        await self.control.close()
        await self.caches.close()


@dataclass
class ChaosCluster:
    port: int
    workers: list[ChaosWorker]
    random: random.Random
    harms: "Counter[str]" = field(default_factory=Counter)

    async def harm_for_ever(self, every_s: float, longest_s: float) -> None:
        """A random harm to a random worker about every ``every_s``; those with an end last up to
        ``longest_s``."""
        ends: set[asyncio.Task[None]] = set()
        try:
            while True:
                await asyncio.sleep(self.random.uniform(0.5, 1.5) * every_s)
                end = asyncio.create_task(self._harm(longest_s))
                ends.add(end)
                end.add_done_callback(ends.discard)
        finally:
            for worker in self.workers:
                worker.signal(signal.SIGCONT)
                worker.control.resume()
                worker.caches.resume()
            for end in list(ends):
                end.cancel()

    async def _harm(self, longest_s: float) -> None:
        harm = self.random.choice(list(Harm))
        worker = self.random.choice(self.workers)
        lasts_s = self.random.uniform(0.1, longest_s)
        if harm is Harm.CORRUPT:  # of whoever is the next to get a cache; counted when it happens
            for one in self.workers:
                one.caches.corrupt_next(self._corrupted)
            return
        self.harms[harm.value] += 1
        match harm:
            case Harm.KILL:
                worker.signal(signal.SIGKILL)
            case Harm.BREAK:
                worker.control.reset()
                worker.caches.reset()
            case Harm.FREEZE:
                worker.signal(signal.SIGSTOP)
                await asyncio.sleep(lasts_s)
                worker.signal(signal.SIGCONT)
            case Harm.CUT:
                worker.control.hang()
                worker.caches.hang()
                await asyncio.sleep(lasts_s)
                worker.control.resume()
                worker.caches.resume()

    def _corrupted(self) -> None:
        self.harms[Harm.CORRUPT.value] += 1
        for one in self.workers:
            one.caches.corrupt_next(None)


@asynccontextmanager
async def chaos_cluster(
    pools: dict[str, int], arguments: list[str], serve_arguments: list[str], log: IO[bytes]
) -> AsyncIterator[ChaosCluster]:
    """A gateway and workers, so many a role, with ``arguments`` for all; what they log goes to
    ``log``."""
    names = [(role, f"{role}-{i}") for role, count in pools.items() for i in range(count)]
    port, join_port = free_port(), free_port()
    ports = [f"--port={port}", f"--scheduler-port={join_port}"]
    serve = [*ports, f"--external-workers={len(names)}", *arguments, *serve_arguments]
    workers: list[ChaosWorker] = []
    try:
        for role, name in names:
            worker = await _new_worker(role, name, join_port, arguments, log)
            worker.keeper = asyncio.create_task(worker.keep_running())
            workers.append(worker)
        async with gateway_process(serve, log):
            yield ChaosCluster(port, workers, random.Random(7))
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers))


@asynccontextmanager
async def gateway_process(arguments: list[str], log: IO[bytes]) -> AsyncIterator[None]:
    """``splitwise serve``, from when it is ready."""
    gateway = await asyncio.create_subprocess_exec(
        *(*COMMAND, "serve", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=log,
        env=os.environ | ENVIRONMENT,
    )
    try:
        assert gateway.stdout is not None
        async with asyncio.timeout(START_LIMIT_S):
            while not (said := await gateway.stdout.readline()).startswith(b"ready: "):
                assert said, f"the gateway did not start; see {log.name}"
        drain = asyncio.create_task(_drain(gateway.stdout, log))
        yield
    finally:
        if gateway.returncode is None:
            gateway.terminate()
        await gateway.wait()
    await drain


async def _drain(stdout: asyncio.StreamReader, log: IO[bytes]) -> None:
    """Ray says a lot there."""
    async for line in stdout:
        log.write(line)


async def _new_worker(
    role: str, name: str, join_port: int, arguments: list[str], log: IO[bytes]
) -> ChaosWorker:
    transfer_port = free_port()
    control, caches = TcpProxy(join_port), TcpProxy(transfer_port)
    command = [
        "worker",
        f"--join=127.0.0.1:{await control.start()}",
        f"--role={role}",
        f"--machine-id={name}",
        f"--transfer-port={transfer_port}",
        f"--announce=127.0.0.1:{await caches.start()}",
        *("--transport=tcp", "--checksum", "--one-piece-below=64"),
        *arguments,
    ]
    return ChaosWorker(name, command, control, caches, log)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
