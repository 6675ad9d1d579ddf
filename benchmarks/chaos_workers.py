"""Workers that may be harmed: of the gateway's own, or on what might be a host of its own."""

import asyncio
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import psutil

from processes import free_port
from splitwise.engine.faulty import FAULTS_VARIABLE
from tcp_proxy import TcpProxy

COMMAND = [sys.executable, "-m", "splitwise.cli.main"]
RESTART_S = 0.5
_MACHINES = re.compile(r'^splitwise:kv_cache_usage_perc\{.*machine="([^"]+)"', re.MULTILINE)
TRANSFERS = ("--transport=tcp", "--checksum", "--one-piece-below=64")


@dataclass(frozen=True)
class LaunchedWorker:
    """One that the gateway's launcher starts, and starts again."""

    name: str
    join: str

    def process(self) -> psutil.Process | None:
        """Its process of the moment, if it has one."""
        wanted = {"worker", f"--machine-id={self.name}", f"--join={self.join}"}
        for process in psutil.process_iter(["cmdline"]):
            if wanted <= set(process.info["cmdline"] or ()):
                return process
        return None

    def signal(self, number: signal.Signals) -> None:
        process = self.process()
        if process is not None:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                return  # It has ended meanwhile, of another harm.


@dataclass
class RemoteWorker:
    """One behind proxies, which this process starts, and starts again, as a supervisor of its host
    would: the gateway neither starts nor ends it."""

    name: str
    arguments: list[str]
    environment: dict[str, str]
    control: TcpProxy
    caches: TcpProxy
    log: IO[bytes]
    keeper: "asyncio.Task[None] | None" = None
    _process: asyncio.subprocess.Process | None = None

    async def keep_running(self) -> None:
        """Start it, and again whenever it ends."""
        while True:
            self._process = await asyncio.create_subprocess_exec(
                *COMMAND,
                *self.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stderr=self.log,
                env=self.environment,
            )
            await self._process.wait()
            await asyncio.sleep(RESTART_S)

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def stop(self) -> None:
        if self.keeper is not None:
            self.keeper.cancel()
        self.signal(signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()
        await self.control.close()
        await self.caches.close()


async def start_remote_worker(
    role: str,
    name: str,
    join_port: int,
    arguments: list[str],
    environment: dict[str, str],
    log: IO[bytes],
) -> RemoteWorker:
    transfer_port = free_port()
    control, caches = TcpProxy(join_port), TcpProxy(transfer_port)
    command = [
        "worker",
        f"--join=127.0.0.1:{await control.start()}",
        f"--role={role}",
        f"--machine-id={name}",
        f"--transfer-port={transfer_port}",
        f"--announce=127.0.0.1:{await caches.start()}",
        *TRANSFERS,
        *arguments,
    ]
    worker = RemoteWorker(name, command, environment, control, caches, log)
    worker.keeper = asyncio.create_task(worker.keep_running())
    return worker


async def machines_of(port: int) -> set[str]:
    """The machines that are in the cluster of the gateway at ``port``, heard or not."""
    async with httpx.AsyncClient(timeout=60) as client:
        metrics = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    return set(_MACHINES.findall(metrics))


def environment_with(faults: Path) -> dict[str, str]:
    """What gateway and workers run in; the folder ``faults`` says which engines fail."""
    return os.environ | {
        "SPLITWISE_CLUSTER_KEY": "a key of the chaos run",
        FAULTS_VARIABLE: str(faults),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
    }
