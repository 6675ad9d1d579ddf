"""A gateway with workers, some of its own and some as on other hosts, and what may befall them.

``Harm`` is what may befall a worker, at any moment. The gateway starts one machine a pool, whose
second death, say, it has to notice; the others stand behind proxies, which can be cut.
"""

import asyncio
import random
import signal
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO

from chaos_workers import (
    COMMAND,
    TRANSFERS,
    LaunchedWorker,
    RemoteWorker,
    environment_with,
    free_port,
    machines_of,
    start_remote_worker,
)

START_LIMIT_S = 600.0
SECOND_DEATH_S = 3.0
LAUNCHED_A_POOL = 1


class Harm(StrEnum):
    KILL = "killed"
    KILL_TWICE = "killed twice"
    FREEZE = "frozen"
    FAIL = "engine failing"
    CUT = "cut off"
    BREAK = "connections broken"
    CORRUPT = "transfer corrupted"


OF_CONNECTIONS = (Harm.CUT, Harm.BREAK, Harm.CORRUPT)


@dataclass
class HarmedCluster(ABC):
    """A gateway, its workers, and who harms them."""

    port: int
    faults: Path
    """Where engines look for theirs."""
    random: random.Random
    harms: "Counter[str]" = field(default_factory=Counter, kw_only=True)

    @property
    @abstractmethod
    def workers(self) -> Sequence[LaunchedWorker | RemoteWorker]: ...

    @abstractmethod
    async def harm(self, lasts_s: float) -> None:
        """One random harm to a random worker; it lasts so long if it has an end."""

    async def harm_for_ever(self, every_s: float, longest_s: float) -> None:
        """A harm about every ``every_s``; those with an end last up to ``longest_s``, unless the
        gateway has ended a frozen worker by then."""
        ends: set[asyncio.Task[None]] = set()
        try:
            while True:
                await asyncio.sleep(self.random.uniform(0.5, 1.5) * every_s)
                end = asyncio.create_task(self.harm(self.random.uniform(0.1, longest_s)))
                ends.add(end)
                end.add_done_callback(ends.discard)
        finally:
            for end in list(ends):
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)


@dataclass
class ChaosCluster(HarmedCluster):
    launched: list[LaunchedWorker]
    remote: list[RemoteWorker]

    @property
    def workers(self) -> Sequence[LaunchedWorker | RemoteWorker]:
        return [*self.launched, *self.remote]

    async def harm(self, lasts_s: float) -> None:
        harm, machines = self.random.choice(list(Harm)), await machines_of(self.port)
        remote = [worker for worker in self.remote if worker.name in machines]
        launched = [worker for worker in self.launched if worker.name in machines]
        if not (remote if harm in OF_CONNECTIONS else [*launched, *remote]):
            return
        if harm is not Harm.CORRUPT:  # That is counted when it happens.
            self.harms[harm.value] += 1
        if harm in OF_CONNECTIONS:
            await self._harm_connections(self.random.choice(remote), harm, lasts_s)
        else:
            worker = self.random.choice([*launched, *remote])
            await harm_process(worker, harm, lasts_s, self.faults)

    async def _harm_connections(self, worker: RemoteWorker, harm: Harm, lasts_s: float) -> None:
        try:
            match harm:
                case Harm.BREAK:
                    worker.control.reset()
                    worker.caches.reset()
                case Harm.CORRUPT:  # of whoever is the next to get a cache
                    for one in self.remote:
                        one.caches.corrupt_next(self._corrupted)
                case Harm.CUT:
                    worker.control.hang()
                    worker.caches.hang()
                    await asyncio.sleep(lasts_s)
        finally:
            worker.control.resume()
            worker.caches.resume()

    def _corrupted(self) -> None:
        self.harms[Harm.CORRUPT.value] += 1
        for one in self.remote:
            one.caches.corrupt_next(None)


async def harm_process(
    worker: LaunchedWorker | RemoteWorker, harm: Harm, lasts_s: float, faults: Path
) -> None:
    """Do it, and undo what has an end; ``faults`` is where engines look for theirs."""
    fault = faults / worker.name
    try:
        match harm:
            case Harm.KILL:
                worker.signal(signal.SIGKILL)
            case Harm.KILL_TWICE:
                worker.signal(signal.SIGKILL)
                await asyncio.sleep(SECOND_DEATH_S)
                worker.signal(signal.SIGKILL)
            case Harm.FREEZE:
                worker.signal(signal.SIGSTOP)
                await asyncio.sleep(lasts_s)
            case Harm.FAIL:
                fault.write_text("step")
                await asyncio.sleep(lasts_s)
    finally:
        if harm is Harm.FAIL:
            fault.unlink(missing_ok=True)
        if harm is Harm.FREEZE:
            worker.signal(signal.SIGCONT)


@asynccontextmanager
async def chaos_cluster(
    pools: dict[str, int], arguments: list[str], serve_arguments: list[str], log: IO[bytes]
) -> AsyncIterator[ChaosCluster]:
    """A gateway and workers, so many a role, with ``arguments`` for all; what they log goes to
    ``log``."""
    port, join_port = free_port(), free_port()
    launched = {role: min(LAUNCHED_A_POOL, pools.get(role, 0)) for role in ("prompt", "token")}
    distant = [
        (role, f"{role}-{i}")
        for role, count in pools.items()
        for i in range(launched.get(role, 0), count)
    ]
    serve = [
        *(f"--port={port}", f"--scheduler-port={join_port}", "--mixed=0"),
        *(f"--{role}={count}" for role, count in launched.items()),
        *(f"--external-workers={len(distant)}", *TRANSFERS, *arguments, *serve_arguments),
    ]
    remote: list[RemoteWorker] = []
    with tempfile.TemporaryDirectory(prefix="chaos-faults-") as faults:
        environment = environment_with(Path(faults))
        try:
            for role, name in distant:
                remote.append(
                    await start_remote_worker(role, name, join_port, arguments, environment, log)
                )
            async with gateway_process(serve, environment, log):
                own = [
                    LaunchedWorker(f"{role}-{i}", f"127.0.0.1:{join_port}")
                    for role, count in launched.items()
                    for i in range(count)
                ]
                yield ChaosCluster(port, Path(faults), random.Random(7), own, remote)
        finally:
            await asyncio.gather(*(worker.stop() for worker in remote))


@asynccontextmanager
async def gateway_process(
    arguments: list[str], environment: dict[str, str], log: IO[bytes]
) -> AsyncIterator[None]:
    """``splitwise serve``, from when it is ready."""
    gateway = await asyncio.create_subprocess_exec(
        *(*COMMAND, "serve", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=log,
        env=environment,
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
