"""A gateway with ``--launcher ray`` on a Ray cluster of this host, and what may befall its workers.

Ray starts them again, not this process. Needs the extra ``ray``.
"""

import os
import random
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import IO

from chaos_cluster import Harm, HarmedCluster, gateway_process, harm_process
from chaos_workers import TRANSFERS, LaunchedWorker, environment_with, free_port, machines_of
from splitwise.engine.faulty import FAULTS_VARIABLE

STORE_BYTES = 80 * 2**20


class RayHarm(StrEnum):
    KILL = "worker killed"
    KILL_TWICE = "worker killed twice"
    KILL_ACTOR = "actor killed"
    FREEZE = "frozen"
    FAIL = "engine failing"


SAME_ELSEWHERE = {
    RayHarm.KILL: Harm.KILL,
    RayHarm.KILL_TWICE: Harm.KILL_TWICE,
    RayHarm.FREEZE: Harm.FREEZE,
    RayHarm.FAIL: Harm.FAIL,
}


@dataclass
class RayChaosCluster(HarmedCluster):
    launched: list[LaunchedWorker]

    @property
    def workers(self) -> list[LaunchedWorker]:
        return self.launched

    async def harm(self, lasts_s: float) -> None:
        machines, harm = await machines_of(self.port), self.random.choice(list(RayHarm))
        workers = [worker for worker in self.workers if worker.name in machines]
        if not workers:
            return
        worker = self.random.choice(workers)
        self.harms[harm.value] += 1
        if harm is RayHarm.KILL_ACTOR:
            _kill_actor(worker)
        else:
            await harm_process(worker, SAME_ELSEWHERE[harm], lasts_s, self.faults)


def _kill_actor(worker: LaunchedWorker) -> None:
    process = worker.process()
    if process is not None and (actor := process.parent()) is not None:
        actor.kill()


@asynccontextmanager
async def ray_chaos_cluster(
    pools: dict[str, int], arguments: list[str], serve_arguments: list[str], log: IO[bytes]
) -> AsyncIterator[RayChaosCluster]:
    """A gateway whose workers, so many a role, Ray places; all log to ``log``."""
    names = [f"{role}-{i}" for role, count in pools.items() for i in range(count)]
    port, join_port = free_port(), free_port()
    counts = {role: pools.get(role, 0) for role in ("prompt", "token", "mixed")}
    with (
        tempfile.TemporaryDirectory(prefix="chaos-faults-") as faults,
        _ray(len(names), faults) as address,
    ):
        serve = [
            *("--launcher=ray", f"--ray={address}"),
            *(f"--port={port}", f"--scheduler-port={join_port}"),
            *(f"--{role}={count}" for role, count in counts.items()),
            *(*TRANSFERS, *arguments, *serve_arguments),
        ]
        async with gateway_process(serve, environment_with(Path(faults)), log):
            join = f"127.0.0.1:{join_port}"
            workers = [LaunchedWorker(name, join) for name in names]
            yield RayChaosCluster(port, Path(faults), random.Random(7), workers)


@contextmanager
def _ray(cores: int, faults: str) -> Iterator[str]:
    """A Ray cluster with so many cores, by its own count; its address."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Nothing of ours is reported.
    os.environ[FAULTS_VARIABLE] = faults  # The actors, and so the workers, inherit it.
    Path("/tmp/ray").mkdir(exist_ok=True)  # Ray notes an address there, whatever its folder.
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
