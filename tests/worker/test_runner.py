"""A session drives a machine that is none of ours: its engine schedules itself and answers late.

Real sessions, a real cluster scheduler, sockets between them, and real caches that travel. Only
the engine is made up: each task is a coroutine of its own, and there are no iterations.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import pytest
from scripted_cluster import MODEL, Counters, request
from transfer_machines import ends_of_one_rank

from splitwise.cluster.scheduler import ClusterLimits, ClusterScheduler
from splitwise.cluster.scheduler_server import SchedulerServer
from splitwise.engine.sampling import Sample
from splitwise.protocol.generation import FinishReason, TokenStream
from splitwise.protocol.messages import (
    Cancel,
    Expect,
    MachineStatus,
    Output,
    Outputs,
    PromptsStarted,
    RunPrompt,
    TaskFailed,
    TaskSpec,
    Transferred,
)
from splitwise.scheduling.pool import Pool
from splitwise.transfer import (
    Arrived,
    CacheLayout,
    Failed,
    HostMemory,
    ReceiverAddress,
    ReceiverEvent,
    SenderEvent,
)
from splitwise.worker.options import WorkerOptions
from splitwise.worker.runner import Command, MachineFacts, MachineRunner, Say
from splitwise.worker.session import Session

KEY = "the cluster's key"
LAYOUT = CacheLayout.flat(2, 64, 16, 8)
WAIT_S = 20


def expected_tokens(prompt: list[int], count: int) -> list[int]:
    return [(sum(prompt) + len(prompt) + place) % 90 for place in range(count)]


class Asynchronous(MachineRunner):
    """One coroutine a task. Its cache holds the prompt's sum in every layer of every block; tokens
    are drawn from what the cache holds, so that they are right only where it arrived."""

    def __init__(self, name: str, say: Say) -> None:
        self._say = say
        self._loop = asyncio.get_running_loop()
        self._memory = HostMemory(LAYOUT.total_bytes)
        self.cache = np.frombuffer(self._memory.buffer, np.int64).reshape(LAYOUT.layers, -1)
        self._receiver, self._sender = ends_of_one_rank(
            self._memory, LAYOUT, name, KEY, self._on_event
        )
        self.facts = MachineFacts(MODEL, LAYOUT, self._receiver.addresses)
        self.free = set(range(LAYOUT.blocks))
        self.work: dict[int, asyncio.Task[None]] = {}
        self._events: dict[str, asyncio.Future[ReceiverEvent | SenderEvent]] = {}
        self._broken: asyncio.Future[None] = self._loop.create_future()
        self.was_closed = False

    async def run(self) -> None:
        try:
            await self._broken
        finally:
            for task in list(self.work.values()):
                task.cancel()
            await asyncio.gather(*self.work.values(), return_exceptions=True)

    def take(self, command: Command) -> None:
        match command:
            case RunPrompt(spec=spec):
                self._start(spec, self._prompt(spec, command.target))
            case Expect(spec=spec):
                self._start(spec, self._expected(command))
            case Cancel(task=task) if task in self.work:
                self.work[task].cancel()

    def status(self) -> MachineStatus:
        return MachineStatus(LAYOUT.blocks - len(self.free), LAYOUT.blocks, len(self.work), 0)

    async def close(self) -> None:
        self._sender.close()
        self._receiver.close()
        self.was_closed = True

    def break_down(self) -> None:
        self._broken.set_exception(RuntimeError("the engine's process has ended"))

    def _start(self, spec: TaskSpec, work: Coroutine[Any, Any, None]) -> None:
        self.work[spec.task] = asyncio.create_task(self._in_time(spec, work))

    async def _in_time(self, spec: TaskSpec, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            del self.work[spec.task]

    def _on_event(self, event: ReceiverEvent | SenderEvent) -> None:
        """From a transfer's thread."""
        future = self._events[event.transfer_id]
        self._loop.call_soon_threadsafe(future.set_result, event)

    async def _prompt(self, spec: TaskSpec, target: ReceiverAddress | None) -> None:
        name = str(spec.task)
        with self._blocks(spec) as blocks:
            self._say(PromptsStarted([spec.task]))
            if target is not None:
                self._events[name] = self._loop.create_future()
                self._sender.begin(name, target, blocks)
            for layer in range(LAYOUT.layers):
                if target is None:  # else a cancel would have to stop its transfer, too
                    await asyncio.sleep(0.001)
                self.cache[layer, blocks] = sum(spec.history[: spec.prompt_tokens])
                if target is not None:
                    self._sender.layer_ready([name], layer)
            ended = self._output(spec, blocks)
            if target is None:
                await self._tokens(spec, blocks, ended)
            else:
                self._sender.finish(name, msgspec.msgpack.encode(spec.history[-1]))
                await self._ended(name, self._sender.cancel)

    async def _expected(self, command: Expect) -> None:
        spec = command.spec
        name = str(spec.task)
        with self._blocks(spec) as blocks:
            self._events[name] = self._loop.create_future()
            self._receiver.expect(name, command.source_id, command.source_ranks, blocks)
            event = await self._ended(name, self._receiver.cancel)
            if isinstance(event, Failed):
                self._say(TaskFailed(spec.task, event.reason, in_transfer=True))
                return
            assert isinstance(event, Arrived)
            self._say(Transferred(spec.task, event.stats))
            spec.history.append(msgspec.msgpack.decode(event.payload))
            await self._tokens(spec, blocks, ended=False)

    async def _ended(self, name: str, cancel: Callable[[str], None]) -> ReceiverEvent | SenderEvent:
        """A transfer's event, also to a task that is cancelled: only then are its blocks free."""
        try:
            return await asyncio.shield(self._events[name])
        except asyncio.CancelledError:
            cancel(name)
            await self._events[name]
            raise

    @contextmanager
    def _blocks(self, spec: TaskSpec) -> Iterator[list[int]]:
        blocks = [self.free.pop() for _ in range(LAYOUT.blocks_for(spec.max_history_tokens))]
        try:
            yield blocks
        finally:
            self.free |= set(blocks)

    async def _tokens(self, spec: TaskSpec, blocks: list[int], ended: bool) -> None:
        while not ended:
            await asyncio.sleep(0.002)
            ended = self._output(spec, blocks)

    def _output(self, spec: TaskSpec, blocks: list[int]) -> bool:
        """Draw from what the blocks of the prompt hold, which must be the same everywhere."""
        held = blocks[: LAYOUT.blocks_for(spec.prompt_tokens)]
        (total,) = set(self.cache[:, held].ravel().tolist())
        position = len(spec.history)
        spec.history.append((total + position) % 90)
        ended = len(spec.history) == spec.max_history_tokens
        finish = FinishReason.LENGTH if ended else None
        sample = Sample(spec.history[-1])
        self._say(Outputs([Output(spec.task, position, sample, finish)]))
        return ended


class Cluster:
    """A cluster scheduler that listens, and the sessions that have joined it."""

    def __init__(self) -> None:
        self.cluster = ClusterScheduler(ClusterLimits(), Counters(), MODEL.name)
        self.server = SchedulerServer(self.cluster, KEY)
        self.runners: dict[str, Asynchronous] = {}
        self.sessions: dict[str, Session] = {}
        self.ends: dict[str, asyncio.Task[None]] = {}
        self.address = ("", 0)

    async def join(self, name: str, pool: Pool) -> None:
        async def open_runner(say: Say) -> MachineRunner:
            self.runners[name] = Asynchronous(name, say)
            return self.runners[name]

        options = WorkerOptions(name, pool, *self.address, KEY)
        self.sessions[name] = Session(open_runner, options)
        self.ends[name] = asyncio.create_task(self.sessions[name].run())
        await self.until(lambda: name in self.cluster.roster.names)

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not done():
                await asyncio.sleep(0.005)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster()
    cluster.address = await cluster.server.start("127.0.0.1", 0)
    yield cluster
    await cluster.server.close(cluster.sessions)
    await asyncio.wait(cluster.ends.values(), timeout=WAIT_S)
    assert all(runner.was_closed for runner in cluster.runners.values())


async def tokens_of(stream: TokenStream) -> list[int]:
    tokens: list[int] = []
    async with asyncio.timeout(WAIT_S):
        while True:
            chunk = await stream.next()
            tokens += [sample.token for sample in chunk.samples]
            if chunk.finish is not None:
                return tokens


async def test_both_phases_on_machines_that_schedule_themselves(cluster: Cluster) -> None:
    await cluster.join("prompts", Pool.PROMPT)
    await cluster.join("tokens", Pool.TOKEN)
    streams = [cluster.cluster.submit(request(length, 6)) for length in (5, 16, 17, 40)]
    answers = await asyncio.gather(*(tokens_of(stream) for stream in streams))
    for length, answer in zip((5, 16, 17, 40), answers, strict=True):
        assert answer == expected_tokens(list(range(length)), 6)
    runners = cluster.runners.values()
    await cluster.until(lambda: all(len(runner.free) == LAYOUT.blocks for runner in runners))


async def test_one_machine_alone_a_cancel_and_the_status_that_it_reports(cluster: Cluster) -> None:
    await cluster.join("alone", Pool.MIXED)
    runner = cluster.runners["alone"]
    answer = await tokens_of(cluster.cluster.submit(request(20, 4)))
    assert answer == expected_tokens(list(range(20)), 4)
    endless = cluster.cluster.submit(request(20, 400))
    await endless.next()
    assert runner.status().used_blocks > 0
    endless.cancel()
    await cluster.until(lambda: not runner.work and len(runner.free) == LAYOUT.blocks)


async def test_a_runner_that_breaks_ends_its_session_and_its_requests_go_elsewhere(
    cluster: Cluster,
) -> None:
    await cluster.join("first", Pool.MIXED)
    stream = cluster.cluster.submit(request(10, 300))
    begun = [sample.token for sample in (await stream.next()).samples]
    first = cluster.runners["first"]
    first.break_down()
    with pytest.raises(RuntimeError, match="the engine's process has ended"):
        await asyncio.wait_for(cluster.ends["first"], WAIT_S)
    assert first.was_closed and not first.work and len(first.free) == LAYOUT.blocks
    await cluster.join("second", Pool.MIXED)
    assert begun + await tokens_of(stream) == expected_tokens(list(range(10)), 300)
