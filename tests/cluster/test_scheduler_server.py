"""Who may join a cluster over the control connection, and what becomes of it at the end."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec
import pytest
from scripted_cluster import MODEL, Counters, Link

from splitwise.cluster.limits import ClusterLimits
from splitwise.cluster.scheduler import ClusterScheduler
from splitwise.cluster.scheduler_server import SchedulerServer
from splitwise.protocol.messages import (
    Challenge,
    Refused,
    Register,
    Shutdown,
    ToWorker,
    Welcome,
)
from splitwise.protocol.wire import Wire, prove
from splitwise.scheduling.pool import Pool

KEY = "the cluster's key"


class Dialler:
    """Dials a scheduler as workers do."""

    def __init__(self, server: SchedulerServer, cluster: ClusterScheduler) -> None:
        self.server = server
        self.cluster = cluster
        self.address = ("", 0)
        self.wires: list[Wire[ToWorker]] = []

    async def join(self, name: str, key: str = KEY, **changes: object) -> ToWorker:
        """Register machine ``name``; what the scheduler says to that."""
        wire: Wire[ToWorker] = await Wire.dial(*self.address, ToWorker)
        self.wires.append(wire)
        challenge = await wire.receive()
        assert isinstance(challenge, Challenge)
        register: Register = msgspec.structs.replace(
            Link(name, Pool.MIXED).register, proof=prove(key, challenge.nonce, name), **changes
        )
        wire.send(register)
        return await asyncio.wait_for(wire.receive(), 10)


@pytest.fixture
async def dialler() -> AsyncIterator[Dialler]:
    cluster = ClusterScheduler(ClusterLimits(), Counters(), MODEL.name)
    dialler = Dialler(SchedulerServer(cluster, KEY), cluster)
    dialler.address = await dialler.server.start("127.0.0.1", 0)
    yield dialler
    await dialler.server.close(())
    for wire in dialler.wires:
        await wire.close()


async def test_the_key_opens(dialler: Dialler) -> None:
    assert isinstance(await dialler.join("a"), Welcome)
    assert dialler.cluster.roster.names == ["a"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": "another"}, "SPLITWISE_CLUSTER_KEY"),
        ({"version": 1}, "version 1"),
        ({"model": replace(MODEL, layers=7)}, "same model"),
        ({"model": replace(MODEL, name="other")}, "--model-name"),
    ],
)
async def test_what_does_not_fit_is_refused(
    dialler: Dialler, changes: dict[str, object], words: str
) -> None:
    await dialler.join("a")
    taken = await dialler.join("a")
    assert isinstance(taken, Refused) and "--machine-id" in taken.reason
    answer = await dialler.join("b", **changes)  # type: ignore[arg-type]
    assert isinstance(answer, Refused) and words in answer.reason
    assert dialler.cluster.roster.names == ["a"]


async def test_at_the_end_our_own_workers_are_told_and_others_hung_up_on(dialler: Dialler) -> None:
    await dialler.join("ours")
    await dialler.join("theirs")
    closing = asyncio.create_task(dialler.server.close({"ours"}))
    ours, theirs = dialler.wires
    assert await asyncio.wait_for(ours.receive(), 10) == Shutdown()
    assert not closing.done()
    await ours.close()
    await asyncio.wait_for(closing, 10)
    with pytest.raises(EOFError):
        await asyncio.wait_for(theirs.receive(), 10)
