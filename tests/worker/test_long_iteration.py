"""A worker whose scheduler is lost in the middle of an iteration."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from splitwise.cluster.scheduler import ClusterLimits, ClusterScheduler
from splitwise.cluster.scheduler_server import SchedulerServer
from splitwise.engine.base import LayerCallback, Work
from splitwise.engine.null.engine import NullEngine, null_model
from splitwise.engine.sampling import Sample, SamplingParams
from splitwise.observe.metrics import Metrics
from splitwise.protocol.generation import GenerationRequest
from splitwise.scheduling.pool import Pool
from splitwise.worker import session
from splitwise.worker.engine_runner import opens_engine
from splitwise.worker.options import WorkerOptions
from splitwise.worker.worker import _run

KEY = "a key"


class HeldEngine(NullEngine):
    """Its iterations last as long as a test has them."""

    def __init__(self) -> None:
        super().__init__(null_model(), 1 << 20)
        self.has_begun = threading.Event()
        self.may_end = threading.Event()

    def step(
        self, work: Sequence[Work], on_layer: LayerCallback | None = None
    ) -> list[Sample | None]:
        self.has_begun.set()
        assert self.may_end.wait(30)
        return super().step(work, on_layer)


async def open_cluster(port: int = 0) -> tuple[ClusterScheduler, SchedulerServer, int]:
    cluster = ClusterScheduler(ClusterLimits(), Metrics("null"))
    server = SchedulerServer(cluster, KEY)
    return cluster, server, (await server.start("127.0.0.1", port))[1]


async def test_a_long_iteration_does_not_keep_a_worker_from_coming_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("STOP_LIMIT_S", "PATIENCE_S"):
        monkeypatch.setattr(session, name, 0.2, raising=False)
    cluster, server, port = await open_cluster()
    engine = HeldEngine()
    options = WorkerOptions("w", Pool.MIXED, "127.0.0.1", port, KEY, rejoin_s=30)
    working = asyncio.create_task(_run(opens_engine(engine, options), options))
    async with asyncio.timeout(30):
        await cluster.roster.wait_for(1)
        cluster.submit(GenerationRequest("r", [4, 5], 3, SamplingParams(), []))
        await asyncio.to_thread(engine.has_begun.wait)
        await server.close(())
        done, _ = await asyncio.wait([working], timeout=1.0)
        assert not done, working.exception()
        again, other, _ = await open_cluster(port)
        engine.may_end.set()
        await again.roster.wait_for(1)
        assert again.roster.names == ["w"]
        await other.close({"w"})
        await working
    engine.close()
