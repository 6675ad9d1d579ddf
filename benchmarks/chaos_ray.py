"""A gateway with ``--launcher ray`` on a Ray cluster of this host, and what may befall its workers.

Ray starts them again, not this process. Needs the extra ``ray``.
"""

import asyncio
import os
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from typing import IO

import psutil

from chaos_cluster import free_port, gateway_process

STORE_BYTES = 80 * 2**20


class RayHarm(StrEnum):
    KILL = "worker killed"
    KILL_ACTOR = "actor killed"
    FREEZE = "frozen"


@dataclass(frozen=True)
class RayWorker:
    name: str
    join: str

    def process(self) -> psutil.Process | None:
        """Its process of the moment, if it has one; a child of its actor's."""
        wanted = {"worker", f"--machine-id={self.name}", f"--join={self.join}"}
        for process in psutil.process_iter(["cmdline"]):
            if wanted <= set(process.info["cmdline"] or ()):
                return process
        return None


@dataclass
class RayChaosCluster:
    """What ``chaos_cluster.ChaosCluster`` is to workers of our own."""

    port: int
    workers: list[RayWorker]
    random: random.Random
    harms: "Counter[str]" = field(default_factory=Counter)

    async def harm_for_ever(self, every_s: float, longest_s: float) -> None:
        """A random harm to a random worker about every ``every_s``; frozen ones thaw after up to
        ``longest_s``, unless the gateway has ended them by then."""
        thaws: set[asyncio.Task[None]] = set()
        try:
            while True:
                await asyncio.sleep(self.random.uniform(0.5, 1.5) * every_s)
                process = self.random.choice(self.workers).process()
                if process is None:
                    continue  # It is being started again.
                harm = self.random.choice(list(RayHarm))
                self.harms[harm.value] += 1
                lasts_s = self.random.uniform(0.1, longest_s)
                thaw = asyncio.create_task(_harm(process, harm, lasts_s))
                thaws.add(thaw)
                thaw.add_done_callback(thaws.discard)
        finally:
            for thaw in list(thaws):
                thaw.cancel()
            await asyncio.gather(*thaws, return_exceptions=True)


async def _harm(process: psutil.Process, harm: RayHarm, lasts_s: float) -> None:
    try:
        match harm:
            case RayHarm.KILL:
                process.kill()
            case RayHarm.KILL_ACTOR:
                parent = process.parent()
                if parent is not None:
                    parent.kill()
            case RayHarm.FREEZE:
                process.suspend()
                try:
                    await asyncio.sleep(lasts_s)
                finally:
                    process.resume()
    except psutil.NoSuchProcess:
        return  # It has ended meanwhile, of another harm.


@asynccontextmanager
async def ray_chaos_cluster(
    pools: dict[str, int], arguments: list[str], serve_arguments: list[str], log: IO[bytes]
) -> AsyncIterator[RayChaosCluster]:
    """A gateway whose workers, so many a role, Ray places; all log to ``log``."""
    names = [f"{role}-{i}" for role, count in pools.items() for i in range(count)]
    port, join_port = free_port(), free_port()
    counts = {role: pools.get(role, 0) for role in ("prompt", "token", "mixed")}
    with _ray(len(names)) as address:
        serve = [
            *("--launcher=ray", f"--ray={address}"),
            *(f"--port={port}", f"--scheduler-port={join_port}"),
            *(f"--{role}={count}" for role, count in counts.items()),
            *("--transport=tcp", "--checksum", "--one-piece-below=64"),
        ]
        async with gateway_process([*serve, *arguments, *serve_arguments], log):
            join = f"127.0.0.1:{join_port}"
            workers = [RayWorker(name, join) for name in names]
            yield RayChaosCluster(port, workers, random.Random(7))


@contextmanager
def _ray(cores: int) -> Iterator[str]:
    """A Ray cluster with so many cores, by its own count; its address."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Nothing of ours is reported.
    cluster_utils = import_module("ray.cluster_utils")
    # Paths of Unix sockets are short.
    with tempfile.TemporaryDirectory("-ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = {
            "num_cpus": cores,
            "include_dashboard": False,
            "temp_dir": folder,
            "object_store_memory": STORE_BYTES,
        }
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        try:
            yield cluster.address
        finally:
            cluster.shutdown()
