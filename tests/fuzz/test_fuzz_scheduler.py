"""What workers, and strangers, may say to the cluster scheduler: nothing that harms the others.

A bad worker that knows the key, and connections that never get so far, beside a good worker whose
requests must get exactly their tokens.
"""

import asyncio
import gc
import logging
import os
import random
import struct
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from good_worker import GoodWorker, expected
from holdings import Holdings
from mutations import Garbling, body_of, framed
from scripted_cluster import MODEL, Link, ScriptedCluster, request

from splitwise.cluster.limits import ClusterLimits
from splitwise.cluster.scheduler import ClusterScheduler
from splitwise.cluster.scheduler_server import SchedulerServer
from splitwise.engine.sampling import Sample, SamplingParams
from splitwise.observe.metrics import Metrics
from splitwise.protocol.generation import FinishReason, GenerationRequest
from splitwise.protocol.handshake.conversation import Party, initiate
from splitwise.protocol.handshake.proofs import HandshakeError, Purpose
from splitwise.protocol.messages import (
    MachineStatus,
    Output,
    Outputs,
    Preempted,
    PromptsStarted,
    TaskFailed,
    ToWorker,
    Transferred,
    Welcome,
)
from splitwise.protocol.registration import SCHEDULER_ID, register
from splitwise.protocol.wire import Wire
from splitwise.scheduling.pool import Pool
from splitwise.transfer import TransferStats

KEY = "the cluster's key"
LENGTH = struct.Struct("!I")
PROMPT = list(range(40))
TOKENS = 20
GROWTH_MIB = 24
STATS = TransferStats("tcp", 1000, 0, 0.1, 3)


def frame(body: bytes) -> bytes:
    return LENGTH.pack(len(body)) + body


async def heard(reader: asyncio.StreamReader) -> ToWorker:
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    message: ToWorker = msgspec.msgpack.decode(await reader.readexactly(length), type=ToWorker)
    return message


def stream_of(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, draw: random.Random | None = None
) -> Garbling:
    async def write(data: bytes) -> None:
        writer.write(data)

    return Garbling(reader.readexactly, write, writer.write_eof, draw)


class Scene:
    """A scheduler with a good worker, and ways to attack it."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.cluster = ClusterScheduler(ClusterLimits(), Metrics("tiny"), MODEL.name)
        self.server = SchedulerServer(self.cluster, KEY)
        self.address = ("", 0)
        self.inputs = 0
        self.answers = 0
        self.proved = 0
        """Knocks of which nothing was wrong but, perhaps, the claims."""

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.address)

    async def join(self, name: str, blocks: int) -> Wire[ToWorker]:
        wire: Wire[ToWorker] = await Wire.dial(*self.address, ToWorker)
        machine = Link(name, Pool.MIXED, blocks).register
        assert isinstance(await register(wire, KEY, machine), Welcome)
        return wire

    async def ask(self) -> None:
        """A request, whose tokens must be those of the good worker."""
        stream = self.cluster.submit(GenerationRequest("r", PROMPT, TOKENS, SamplingParams(), []))
        tokens: list[int] = []
        finish = None
        while finish is None:
            chunk = await asyncio.wait_for(stream.next(), 20)
            tokens += [sample.token for sample in chunk.samples]
            finish = chunk.finish
        assert tokens == [expected(p) for p in range(len(PROMPT), len(PROMPT) + TOKENS)]
        self.answers += 1

    async def knock(self) -> None:
        """One connection that does not, or not quite, shake hands or register."""
        self.inputs += 1
        reader, writer = await self.dial()
        name = f"bad-{self.draw.randrange(20)}"
        claims = body_of(Link(name, Pool.MIXED, 1).register, self.draw)
        stream = stream_of(reader, writer, self.draw)
        party = Party(Purpose.CONTROL, name, KEY)
        with suppress(HandshakeError, EOFError, OSError):
            await asyncio.wait_for(initiate(stream, party, SCHEDULER_ID, claims), 20)
        self.proved += stream.is_whole
        await self._hang_up(reader, writer)

    async def misbehave(self, most: int) -> None:
        """Register well, then say up to ``most`` things that are wrong, until hung up on."""
        reader, writer = await self.dial()
        claims = msgspec.msgpack.encode(Link("bad", Pool.MIXED, 1).register)
        stream = stream_of(reader, writer)
        await initiate(stream, Party(Purpose.CONTROL, "bad", KEY), SCHEDULER_ID, claims)
        assert isinstance(await heard(reader), Welcome)
        for _ in range(most):
            if reader.at_eof() or writer.is_closing():
                break
            self.inputs += 1
            message = self.draw.choice(self._words())
            writer.write(framed(body_of(message, self.draw), self.draw, frame, LENGTH))
            await asyncio.sleep(0)
        await self._hang_up(reader, writer)

    def _words(self) -> list[msgspec.Struct]:
        """What workers say, of this cluster's tasks and of others."""
        task = self.draw.choice([*(live.task for live in self.cluster._attempts), 1, 10**6])
        position = len(PROMPT) + self.draw.randrange(TOKENS)
        return [
            Link("bad", Pool.MIXED, 1).register,
            PromptsStarted([task, task]),
            Outputs([Output(task, position, Sample(95, -1.0, [(95, -1.0)]), FinishReason.STOP)]),
            Outputs([Output(task, position, Sample(95))] * 3),
            TaskFailed(task, "a bad worker says so", self.draw.random() < 0.5),
            Preempted(task),
            Transferred(task, STATS),
            MachineStatus(0, 1, 0, 0),
        ]

    async def _hang_up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Whatever is open is closed; the scheduler's end follows."""
        half_open = self.draw.random() < 0.5
        with suppress(OSError):  # it may have hung up
            if half_open:
                writer.write_eof()
        with suppress(ConnectionError):
            if half_open:
                await asyncio.wait_for(reader.read(), 20)
            writer.close()
            await writer.wait_closed()
        while "bad" in self._connected():
            await asyncio.sleep(0)

    def _connected(self) -> list[str]:
        roster = self.cluster.roster
        return [n for n, link in zip(roster.names, roster.links, strict=True) if link is not None]

    def assert_idle(self) -> None:
        assert self._connected() == ["good"]
        loads = self.cluster.roster.cluster
        assert not any(loads.pending_tokens) and not any(loads.waiting)
        assert not any(loads.kv_tokens)
        assert not self.cluster._attempts and not self.cluster._backlog.line
        assert len(self.server._links) == 1


async def attack(scene: Scene, inputs: int) -> None:
    """``inputs`` more, half of them before a registration and half after one."""
    end = scene.inputs + inputs // 2
    while scene.inputs < end:
        await asyncio.gather(*(scene.knock() for _ in range(20)))
    while ",".join(scene._connected()) != "good":
        await asyncio.sleep(0)
    await scene.ask()
    end = scene.inputs + inputs // 2
    while scene.inputs < end:
        good = asyncio.create_task(scene.ask())
        while not good.done():
            await scene.misbehave(most=30)
        await good
    scene.assert_idle()


@pytest.mark.parametrize(
    "inputs",
    [1500, pytest.param(24_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
async def test_fuzz_of_the_scheduler(inputs: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    scene = Scene(random.Random(1))
    scene.address = await scene.server.start("127.0.0.1", 0)
    worker = asyncio.create_task(GoodWorker(await scene.join("good", blocks=64)).run())
    await attack(scene, inputs // 4)  # what is kept once, a machine's name for example, is kept now
    before = Holdings.of(os.getpid())
    await attack(scene, inputs)
    gc.collect()
    after = Holdings.of(os.getpid())
    print(f"{scene.inputs} inputs, {scene.answers} requests beside them; {before} -> {after}")
    assert scene.proved > scene.inputs // 20  # some get as far as their claims
    assert not worker.done()
    worker.cancel()
    await scene.server.close(())
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert after.files <= before.files and after.rss_mib < before.rss_mib + GROWTH_MIB


NESTED = b"\x83\xa4type\xa9Preempted\xa4task\x01\xa1x" + b"\x91" * 5000 + b"\xc0"
PUSHED: dict[str, Any] = {
    "type": "Transferred",
    "task": 1,
    "stats": msgspec.to_builtins(STATS),
}
STATUS = {"type": "MachineStatus", "used_blocks": 0, "running_requests": 0, "waiting_requests": 0}
MISDEEDS: dict[str, tuple[object, str]] = {
    "no blocks": (STATUS | {"total_blocks": 0}, "total_blocks"),
    "fewer than no blocks": (STATUS | {"total_blocks": -7}, "total_blocks"),
    "negative bytes": (PUSHED | {"stats": PUSHED["stats"] | {"early_bytes": -1}}, "early_bytes"),
    "unknown transport": (PUSHED | {"stats": PUSHED["stats"] | {"transport": "?"}}, "transport"),
    "nested": (msgspec.Raw(NESTED), "recursion"),
    "no text": (msgspec.Raw(b"\x81\xa4type\xa2\xff\xfe"), "utf-8"),
    "another's failure": (TaskFailed(1, "so it says", False), "task 1, which it does not run"),
    "another's preemption": (Preempted(1), "task 1, which it does not run"),
    "another's token": (Outputs([Output(1, 40, Sample(3))]), "task 1, which it does not run"),
    "another's prompt": (PromptsStarted([1]), "task 1, which it does not run"),
    "another's cache": (Transferred(1, STATS), "task 1, which it does not run"),
    "what is no message": (Link("bad", Pool.MIXED).register, "malformed"),
}


@pytest.mark.parametrize("name", MISDEEDS)
async def test_a_worker_that_breaks_the_protocol_is_dropped_alone(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    said, reason = MISDEEDS[name]
    scene = Scene(random.Random(0))
    scene.address = await scene.server.start("127.0.0.1", 0)
    worker = asyncio.create_task(GoodWorker(await scene.join("good", blocks=64)).run())
    bad = await scene.join("bad", blocks=1)
    asking = asyncio.create_task(scene.ask())
    while not scene.cluster._attempts:
        await asyncio.sleep(0)
    bad.send(said)
    with pytest.raises(EOFError):
        await asyncio.wait_for(bad.receive(), 10)
    await asking
    scene.assert_idle()
    (lost,) = [r.getMessage() for r in caplog.records if "bad lost" in r.getMessage()]
    assert reason in lost
    assert all(record.levelno < logging.ERROR for record in caplog.records)
    worker.cancel()
    await scene.server.close(())
    await bad.close()


async def test_claims_of_megabytes_are_refused_before_they_are_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = Scene(random.Random(0))
    scene.address = await scene.server.start("127.0.0.1", 0)
    reader, writer = await scene.dial()
    party = Party(Purpose.CONTROL, "bad", KEY)
    with pytest.raises((EOFError, OSError)):
        await initiate(stream_of(reader, writer), party, SCHEDULER_ID, bytes(65537))
    assert "claims of 65537 bytes; at most 65536 are read" in caplog.text
    writer.close()
    await scene.server.close(())


@pytest.mark.parametrize(
    ("position", "token", "words"),
    [(9, 1, "position 9"), (15, 1, "position 15"), (10, 100, "token 100"), (10, -1, "token -1")],
)
def test_an_output_that_cannot_be_is_refused(position: int, token: int, words: str) -> None:
    scripted = ScriptedCluster(Pool.MIXED)
    scripted.cluster.submit(request(prompt=10, max_tokens=5))
    with pytest.raises(ValueError, match=words):
        scripted.output(0, task=1, position=position, token=token)


def test_nothing_follows_the_last_token() -> None:
    scripted = ScriptedCluster(Pool.MIXED)
    live = scripted.cluster.submit(request(prompt=10, max_tokens=5))
    scripted.output(0, task=1, position=11, token=2, finish=True)
    scripted.output(0, task=1, position=12, token=3)
    scripted.output(0, task=1, position=10, token=1)
    assert live.history[10:] == [1, 2] and live.is_finished
    scripted.assert_idle()
