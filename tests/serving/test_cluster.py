"""The cluster scheduler's book-keeping, driven message by message."""

import asyncio
import random
import time

import msgspec
import pytest

from splitwise.engine.base import ModelInfo
from splitwise.engine.sampling import Sample, SamplingParams
from splitwise.scheduling.pools import Pool
from splitwise.serving.cluster import MAX_ATTEMPTS, Cluster, ClusterLimits
from splitwise.serving.generation import (
    FinishReason,
    GenerationFailed,
    GenerationRequest,
    Overloaded,
    Unavailable,
)
from splitwise.serving.messages import (
    Cancel,
    Expect,
    Output,
    Outputs,
    Preempted,
    Register,
    RunPrompt,
    TaskFailed,
)
from splitwise.transfer import ReceiverAddress
from splitwise.transfer.layout import CacheLayout

MODEL = ModelInfo("tiny", 2, 1, 8, "float32", 100, 512)
STOP = 99


class Counters:
    """Metrics that only count."""

    def __init__(self) -> None:
        self.preemptions = 0

    def machine_gone(self, name: str) -> None: ...

    def queued(self, queue_s: float) -> None: ...

    def machine(self, name: str, usage: float, running: int, waiting: int) -> None: ...

    def transfer(self, bytes_: int, early_bytes: int, visible_s: float, transport: str) -> None: ...

    def transfer_failed(self) -> None: ...

    def preempted(self) -> None:
        self.preemptions += 1


class Link:
    """A machine that records what it is told."""

    def __init__(self, machine_id: str, pool: Pool, blocks: int = 64) -> None:
        address = ReceiverAddress(machine_id, "127.0.0.1", 1, "", "here", "cpu", ("tcp",))
        layout = CacheLayout(2, blocks, 16, 1024)
        self.register = Register(machine_id, pool, b"", MODEL, layout, address)
        self.told: list[msgspec.Struct] = []

    def send(self, message: msgspec.Struct) -> None:
        self.told.append(message)

    def last(self) -> msgspec.Struct:
        return self.told[-1]


class Fixture:
    def __init__(self, *pools: Pool, limits: ClusterLimits | None = None) -> None:
        self.metrics = Counters()
        self.cluster = Cluster(limits or ClusterLimits(), self.metrics)
        self.links = [Link(f"m{i}", pool) for i, pool in enumerate(pools)]
        self.indices = [self.cluster.join(link) for link in self.links]

    def output(
        self, machine: int, task: int, position: int, token: int, finish: bool = False
    ) -> None:
        reason = FinishReason.STOP if finish else None
        self.cluster.receive(machine, Outputs([Output(task, position, Sample(token), reason)]))

    def assert_idle(self) -> None:
        machines = self.cluster.roster.machines
        assert machines.pending_prompt_tokens.sum() == 0
        assert machines.kv_tokens.sum() == 0
        assert machines.token_requests.sum() == 0
        assert not self.cluster._live
        assert not self.cluster._waiting
        assert self.cluster._first_tokens_due == 0


def request(prompt: int = 10, max_tokens: int = 5) -> GenerationRequest:
    return GenerationRequest("r", list(range(prompt)), max_tokens, SamplingParams(), [STOP])


async def test_both_machines_are_told_at_once_and_tokens_come_in_order() -> None:
    f = Fixture(Pool.PROMPT, Pool.TOKEN)
    live = f.cluster.submit(request())
    run, expect = f.links[0].last(), f.links[1].last()
    assert isinstance(run, RunPrompt) and isinstance(expect, Expect)
    assert run.target == f.links[1].register.address
    assert expect.source_id == "m0"
    assert run.spec == expect.spec
    task = run.spec.task
    f.output(1, task, 11, 21)  # The token machine's word overtakes the prompt machine's.
    f.output(0, task, 10, 20)
    chunk = await live.next()
    assert [s.token for s in chunk.samples] == [20, 21] and chunk.finish is None
    f.output(1, task, 12, STOP, finish=True)
    chunk = await live.next()
    assert [s.token for s in chunk.samples] == [STOP] and chunk.finish is FinishReason.STOP
    f.assert_idle()
    assert not any(isinstance(m, Cancel) for link in f.links for m in link.told)


async def test_a_request_that_ends_with_its_first_token_frees_the_token_machine() -> None:
    f = Fixture(Pool.PROMPT, Pool.TOKEN)
    live = f.cluster.submit(request())
    f.output(0, live.task, 10, STOP, finish=True)
    assert f.links[1].last() == Cancel(live.task)
    f.assert_idle()


async def test_cancel_tells_both_machines_once() -> None:
    f = Fixture(Pool.PROMPT, Pool.TOKEN)
    live = f.cluster.submit(request())
    live.cancel()
    live.cancel()
    for link in f.links:
        assert [m for m in link.told if isinstance(m, Cancel)] == [Cancel(live.task)]
    f.output(0, live.task, 10, 20)  # Too late: ignored.
    f.assert_idle()


async def test_a_lost_token_machine_restarts_from_prompt_plus_tokens_so_far() -> None:
    f = Fixture(Pool.PROMPT, Pool.TOKEN, Pool.TOKEN)
    live = f.cluster.submit(request())
    f.output(0, live.task, 10, 20)
    f.output(1, live.task, 11, 21)
    first_task = live.task
    f.cluster.lose(1)
    run = f.links[0].last()
    assert isinstance(run, RunPrompt)
    assert run.spec.history == [*range(10), 20, 21] and run.spec.prompt_tokens == 10
    assert run.spec.max_history_tokens == 15
    assert run.target == f.links[2].register.address
    f.output(1, first_task, 12, 66)  # A late word of the lost machine.
    f.output(0, live.task, 12, 22)
    assert [s.token for s in (await live.next()).samples] == [20, 21, 22]
    f.output(2, live.task, 13, STOP, finish=True)
    f.assert_idle()


async def test_preemption_is_no_failure_and_failures_are_bounded() -> None:
    f = Fixture(Pool.MIXED)
    live = f.cluster.submit(request())
    for _ in range(2 * MAX_ATTEMPTS):
        f.cluster.receive(0, Preempted(live.task))
    assert f.metrics.preemptions == 2 * MAX_ATTEMPTS
    for _ in range(MAX_ATTEMPTS):
        f.cluster.receive(0, TaskFailed(live.task, "engine failed: boom", False))
    with pytest.raises(GenerationFailed, match="boom"):
        await live.next()
    f.assert_idle()


async def test_admission_and_availability() -> None:
    f = Fixture(Pool.MIXED, limits=ClusterLimits(max_waiting_requests=2, max_wait_s=0))
    kept = [f.cluster.submit(request()) for _ in range(2)]
    with pytest.raises(Overloaded, match="2 requests"):
        f.cluster.submit(request())
    f.cluster.lose(0)
    with pytest.raises(Unavailable, match="no mixed machine"):
        f.cluster.submit(request())
    f.cluster.fail_overdue(now_s=float("inf"))
    for live in kept:
        with pytest.raises(Unavailable, match="no machine had room"):
            await live.next()
    f.assert_idle()


async def test_a_retry_of_an_old_request_waits_anew_for_a_machine() -> None:
    """A stream that has run longer than ``max_wait_s`` survives the loss of its machine."""
    f = Fixture(Pool.PROMPT, Pool.TOKEN)
    live = f.cluster.submit(request())
    f.output(0, live.task, 10, 20)
    live.submitted_s -= 1000  # It has run for long.
    live.waiting_since_s -= 1000
    f.cluster.lose(1)
    f.cluster.fail_overdue(time.monotonic() + 60)
    f.cluster.join(f.links[1])
    assert isinstance(f.links[1].last(), Expect)
    f.output(0, live.task, 11, STOP, finish=True)
    assert [s.token for s in (await live.next()).samples] == [20, STOP]
    f.assert_idle()


async def test_requests_wait_for_room_first_come_first_served() -> None:
    f = Fixture(Pool.PROMPT, Pool.TOKEN)  # 64 blocks of 16 tokens
    big = f.cluster.submit(request(prompt=900, max_tokens=2))
    second = f.cluster.submit(request(prompt=200, max_tokens=2))
    third = f.cluster.submit(request(prompt=5, max_tokens=2))
    assert second.task == -1 and third.task == -1
    big.cancel()
    assert second.task > 0 and third.task > second.task


async def test_another_model_is_refused() -> None:
    f = Fixture(Pool.PROMPT)
    other = Link("m9", Pool.TOKEN)
    other.register.model = ModelInfo("other", 2, 1, 8, "float32", 100, 512)
    with pytest.raises(ValueError, match="same model"):
        f.cluster.join(other)
    with pytest.raises(ValueError, match="m0"):
        f.cluster.join(Link("m0", Pool.PROMPT))


async def test_a_reader_is_woken_by_a_token() -> None:
    f = Fixture(Pool.MIXED)
    live = f.cluster.submit(request())
    reading = asyncio.create_task(live.next())
    await asyncio.sleep(0)
    assert not reading.done()
    f.output(0, live.task, 10, 20)
    chunk = await asyncio.wait_for(reading, 1)
    assert [s.token for s in chunk.samples] == [20]


@pytest.mark.parametrize("seed", range(30))
async def test_whatever_happens_the_books_balance(seed: int) -> None:
    """Random tokens, cancels, failures, preemptions and losses over five machines."""
    rng = random.Random(seed)
    f = Fixture(Pool.PROMPT, Pool.PROMPT, Pool.TOKEN, Pool.TOKEN, Pool.MIXED)
    cluster, lost, submitted = f.cluster, set[int](), []

    def random_step() -> None:
        choice = rng.random()
        live_now = list(cluster._live.values())
        if choice < 0.3:
            if cluster.unavailable_reason() is None:
                submitted.append(cluster.submit(request(rng.randint(1, 300), rng.randint(1, 6))))
        elif choice < 0.8 and live_now:
            live = rng.choice(live_now)
            position = len(live.history)
            at_prompt = live.state.name == "PROMPT"
            machine = live.prompt_machine if at_prompt else live.token_machine
            last = position + 1 >= live.max_history_tokens
            f.output(machine, live.task, position, position, finish=last)
        elif choice < 0.85 and live_now:
            rng.choice(live_now).cancel()
        elif choice < 0.9 and live_now:
            task = rng.choice(live_now).task
            event = rng.choice([Preempted(task), TaskFailed(task, "why not", True)])
            cluster.receive(rng.choice(f.indices), event)
        elif choice < 0.95 and len(lost) < 4:
            index = rng.choice([i for i in f.indices if i not in lost])
            lost.add(index)
            cluster.lose(index)
        elif lost:
            index = lost.pop()
            assert cluster.join(f.links[index]) == index

    for _ in range(300):
        random_step()
        machines = cluster.roster.machines
        assert machines.kv_tokens.min() >= 0 and machines.pending_prompt_tokens.min() >= 0
        assert machines.token_requests.sum() == len(cluster._live)
    for live in submitted:
        live.cancel()
    f.assert_idle()
