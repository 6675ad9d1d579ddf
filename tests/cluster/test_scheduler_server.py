"""Who may join a cluster over the control connection, and what becomes of it at the end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace

import msgspec
import pytest
from scripted_cluster import MODEL, Counters, Link

from splitwise.cluster import scheduler_server
from splitwise.cluster.limits import ClusterLimits
from splitwise.cluster.scheduler import ClusterScheduler
from splitwise.cluster.scheduler_server import SchedulerServer
from splitwise.protocol.handshake.conversation import Party, initiate
from splitwise.protocol.handshake.proofs import KeyDiffersError, Purpose, preamble
from splitwise.protocol.messages import Refused, Register, Shutdown, ToWorker, Welcome
from splitwise.protocol.registration import SCHEDULER_ID, register
from splitwise.protocol.wire import Wire
from splitwise.scheduling.pool import Pool

KEY = "the cluster's key"
PLACES = 8


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
        machine: Register = msgspec.structs.replace(Link(name, Pool.MIXED).register, **changes)
        return await asyncio.wait_for(register(wire, key, machine), 10)


@pytest.fixture
async def dialler() -> AsyncIterator[Dialler]:
    cluster = ClusterScheduler(ClusterLimits(), Counters(), MODEL.name)
    dialler = Dialler(SchedulerServer(cluster, KEY, places=PLACES), cluster)
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


async def test_another_key_is_named_on_both_sides(
    dialler: Dialler, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyDiffersError, match="SPLITWISE_CLUSTER_KEY"):
        await dialler.join("b", key="another")
    async with asyncio.timeout(10):
        while "'b' finds that the cluster key differs" not in caplog.text:
            await asyncio.sleep(0.01)
    assert dialler.cluster.roster.names == []


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        (msgspec.msgpack.encode(Link("another", Pool.MIXED).register), "registers as 'another'"),
        (b"\xc1", "malformed"),
        (b"\x91" * 5000, "malformed"),
        (b"\x81\xaamachine_id\xa2\xff\xfe", "malformed"),
    ],
)
async def test_claims_that_are_none_are_refused(
    dialler: Dialler, claims: bytes, words: str
) -> None:
    wire: Wire[ToWorker] = await Wire.dial(*dialler.address, ToWorker)
    dialler.wires.append(wire)
    await initiate(wire, Party(Purpose.CONTROL, "b", KEY), SCHEDULER_ID, claims)
    answer = await asyncio.wait_for(wire.receive(), 10)
    assert isinstance(answer, Refused) and words in answer.reason
    assert dialler.cluster.roster.names == []


async def test_silent_strangers_keep_nobody_out(dialler: Dialler) -> None:
    """Far more of them than there are places: each holds one for a moment only."""
    crowd = [await asyncio.open_connection(*dialler.address) for _ in range(PLACES * 5)]
    for reader, writer in crowd[::2]:  # some say a little, a byte at a time
        writer.write(await reader.readexactly(1))
    for name in ("a", "b", "c"):
        assert isinstance(await dialler.join(name), Welcome)
    assert len(dialler.server._unproven) <= PLACES
    assert len(dialler.server._tasks) <= PLACES + 3 + 1  # the machines', and the clock's
    dropped = await asyncio.wait_for(crowd[0][0].read(), 10)
    assert len(dropped) < 100
    for _, writer in crowd:
        writer.close()


async def test_a_handshake_has_a_deadline_that_no_trickle_moves(
    dialler: Dialler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scheduler_server, "HANDSHAKE_LIMIT_S", 0.3)
    reader, writer = await asyncio.open_connection(*dialler.address)
    said = preamble(Purpose.CONTROL) + bytes(32)

    async def trickle() -> None:
        for byte in said:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)

    trickling = asyncio.create_task(trickle())
    ours = preamble(Purpose.CONTROL)
    assert await asyncio.wait_for(reader.readexactly(len(ours)), 10) == ours
    with suppress(ConnectionResetError):  # what trickled in meanwhile is not read any more
        assert not await asyncio.wait_for(reader.read(), 10)
    assert not trickling.done()
    async with asyncio.timeout(10):
        while "before it joined: timed out" not in caplog.text or dialler.server._unproven:
            await asyncio.sleep(0.01)
    trickling.cancel()
    writer.close()


async def test_many_machines_that_come_back_at_once_all_get_in(dialler: Dialler) -> None:
    names = [f"m{number}" for number in range(PLACES * 10)]
    answers = await asyncio.gather(*(dialler.join(name) for name in names))
    assert all(isinstance(answer, Welcome) for answer in answers)
    assert sorted(dialler.cluster.roster.names) == sorted(names)
