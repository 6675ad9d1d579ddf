"""The cluster scheduler's book-keeping, driven message by message."""

import asyncio
import time

import pytest
from scripted_cluster import STOP, Link, ScriptedCluster, request

from splitwise.cluster.limits import ClusterLimits
from splitwise.engine.base import ModelInfo
from splitwise.protocol.generation import (
    FinishReason,
    GenerationFailed,
    Overloaded,
    Unavailable,
)
from splitwise.protocol.messages import (
    Cancel,
    Expect,
    Leave,
    Preempted,
    RunPrompt,
    Shutdown,
    TaskFailed,
)
from splitwise.scheduling.pool import Pool


async def test_both_machines_are_told_at_once_and_tokens_come_in_order() -> None:
    f = ScriptedCluster(Pool.PROMPT, Pool.TOKEN)
    live = f.cluster.submit(request())
    run, expect = f.links[0].last(), f.links[1].last()
    assert isinstance(run, RunPrompt) and isinstance(expect, Expect)
    assert run.target == f.links[1].register.addresses
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
    f = ScriptedCluster(Pool.PROMPT, Pool.TOKEN)
    live = f.cluster.submit(request())
    f.output(0, live.task, 10, STOP, finish=True)
    assert f.links[1].last() == Cancel(live.task)
    f.assert_idle()


async def test_cancel_tells_both_machines_once() -> None:
    f = ScriptedCluster(Pool.PROMPT, Pool.TOKEN)
    live = f.cluster.submit(request())
    live.cancel()
    live.cancel()
    for link in f.links:
        assert [m for m in link.told if isinstance(m, Cancel)] == [Cancel(live.task)]
    f.output(0, live.task, 10, 20)  # Too late: ignored.
    f.assert_idle()


async def test_a_lost_token_machine_restarts_from_prompt_plus_tokens_so_far() -> None:
    f = ScriptedCluster(Pool.PROMPT, Pool.TOKEN, Pool.TOKEN)
    live = f.begun()
    first_task = live.task
    f.cluster.lose(1)
    run = f.links[0].last()
    assert isinstance(run, RunPrompt)
    assert run.spec.history == [*range(10), 20, 21] and run.spec.prompt_tokens == 10
    assert run.spec.max_history_tokens == 15
    assert run.target == f.links[2].register.addresses
    f.output(1, first_task, 12, 66)  # A late word of the lost machine.
    f.output(0, live.task, 12, 22)
    assert [s.token for s in (await live.next()).samples] == [20, 21, 22]
    f.output(2, live.task, 13, STOP, finish=True)
    f.assert_idle()


async def test_preemption_is_no_failure_and_failures_are_bounded() -> None:
    f = ScriptedCluster(Pool.MIXED)
    live = f.cluster.submit(request())
    for _ in range(16):
        f.cluster.receive(0, Preempted(live.task))
    assert f.metrics.preemptions == 16
    for _ in range(ClusterLimits().max_failures):
        f.cluster.receive(0, TaskFailed(live.task, "engine failed: boom", False))
    with pytest.raises(GenerationFailed, match="boom"):
        await live.next()
    f.assert_idle()


async def test_only_failures_without_progress_are_counted() -> None:
    """Machines that go away under a long stream, one after the other, do not end it."""
    f = ScriptedCluster(Pool.MIXED, limits=ClusterLimits(max_failures=2))
    live = f.cluster.submit(request(max_tokens=50))
    for position in range(10, 30, 2):
        f.output(0, live.task, position, 20)
        f.output(0, live.task, position + 1, 21)
        f.cluster.receive(0, TaskFailed(live.task, "unlucky", False))
    assert len((await live.next()).samples) == 20
    f.output(0, live.task, 30, 20)  # of the prompt alone
    f.cluster.receive(0, TaskFailed(live.task, "poison", False))
    await live.next()
    with pytest.raises(GenerationFailed, match="given up after 2 failures; last: poison"):
        await live.next()


async def test_admission_and_availability() -> None:
    f = ScriptedCluster(Pool.MIXED, limits=ClusterLimits(max_waiting_requests=2, max_wait_s=0))
    kept = [f.cluster.submit(request()) for _ in range(2)]
    with pytest.raises(Overloaded, match="2 requests"):
        f.cluster.submit(request())
    f.cluster.lose(0)
    f.cluster.fail_overdue(now_s=float("inf"))
    for live in kept:
        with pytest.raises(Unavailable, match="no machine had room"):
            await live.next()
    f.assert_idle()


async def test_requests_wait_for_a_machine_for_a_bounded_time() -> None:
    """From when there was none any more, or from their own arrival."""
    f = ScriptedCluster(Pool.MIXED, limits=ClusterLimits(max_wait_for_machine_s=30))
    now_s = time.monotonic()
    early = f.cluster.submit(request())
    f.cluster.fail_overdue(now_s)
    f.cluster.lose(0)
    early.waiting_since_s = now_s - 50
    late = f.cluster.submit(request())
    late.waiting_since_s = now_s + 10
    assert f.cluster.unavailable_reason() == "no machine is connected"
    f.cluster.fail_overdue(now_s + 29)
    f.cluster.fail_overdue(now_s + 30.1)
    with pytest.raises(Unavailable, match="no machine is connected, for 30 s"):
        await early.next()
    f.cluster.join(f.links[0])
    assert isinstance(f.links[0].last(), RunPrompt)
    f.output(0, late.task, 10, STOP, finish=True)
    assert [s.token for s in (await late.next()).samples] == [STOP]


async def test_a_machine_that_wants_to_leave_is_drained() -> None:
    f = ScriptedCluster(Pool.MIXED, Pool.MIXED)
    live = f.cluster.submit(request())
    f.cluster.receive(0, Leave())
    f.cluster.submit(request())
    assert isinstance(f.links[1].last(), RunPrompt) and f.links[0].last() != Shutdown()
    f.output(0, live.task, 10, STOP, finish=True)
    assert f.links[0].last() == Shutdown()
    assert f.cluster.pools.is_draining("m0") and not f.cluster.pools.is_out_of_service("m0")
    f.cluster.pools.drain("m0")
    assert f.cluster.pools.is_out_of_service("m0")


async def test_a_retry_of_an_old_request_waits_anew_for_a_machine() -> None:
    """A stream that has run longer than ``max_wait_s`` survives the loss of its machine."""
    f = ScriptedCluster(Pool.MIXED)
    live = f.cluster.submit(request())
    f.output(0, live.task, 10, 20)
    live.submitted_s -= 1000  # It has run for long.
    live.waiting_since_s -= 1000
    f.cluster.lose(0)
    f.cluster.fail_overdue(time.monotonic() + 20)
    f.cluster.join(f.links[0])
    assert isinstance(f.links[0].last(), RunPrompt)
    f.output(0, live.task, 11, STOP, finish=True)
    assert [s.token for s in (await live.next()).samples] == [20, STOP]
    f.assert_idle()


async def test_what_is_left_of_a_split_cluster_serves_alone_until_the_other_half_is_back() -> None:
    f = ScriptedCluster(Pool.PROMPT, Pool.TOKEN)
    live = f.cluster.submit(request())
    f.output(0, live.task, 10, 20)
    f.cluster.lose(1)
    run = f.links[0].last()
    assert isinstance(run, RunPrompt) and run.target is None
    assert run.spec.history == [*range(10), 20]
    assert f.pools() == [Pool.MIXED, Pool.TOKEN]
    f.cluster.join(f.links[1])
    f.output(0, live.task, 11, STOP, finish=True)
    f.assert_idle()


async def test_roles_that_may_not_change_do_not() -> None:
    f = ScriptedCluster(Pool.PROMPT, Pool.TOKEN, limits=ClusterLimits(change_roles=False))
    f.cluster.lose(1)
    live = f.cluster.submit(request())
    assert (live.prompt_machine, live.token_machine) == (0, 0)
    assert f.pools() == [Pool.PROMPT, Pool.TOKEN]
    live.cancel()
    f.assert_idle()


async def test_requests_wait_for_room_first_come_first_served() -> None:
    f = ScriptedCluster(Pool.PROMPT, Pool.TOKEN)  # 64 blocks of 16 tokens
    big = f.cluster.submit(request(prompt=900, max_tokens=2))
    second = f.cluster.submit(request(prompt=200, max_tokens=2))
    third = f.cluster.submit(request(prompt=5, max_tokens=2))
    assert second.task == -1 and third.task == -1
    big.cancel()
    assert second.task > 0 and third.task > second.task


async def test_another_model_is_refused() -> None:
    f = ScriptedCluster(Pool.PROMPT)
    other = Link("m9", Pool.TOKEN)
    other.register.model = ModelInfo("other", 2, 1, 8, "float32", 100, 512)
    with pytest.raises(ValueError, match="same model"):
        f.cluster.join(other)
    with pytest.raises(ValueError, match="m0"):
        f.cluster.join(Link("m0", Pool.PROMPT))


async def test_a_reader_is_woken_by_a_token() -> None:
    f = ScriptedCluster(Pool.MIXED)
    live = f.cluster.submit(request())
    reading = asyncio.create_task(live.next())
    await asyncio.sleep(0)
    assert not reading.done()
    f.output(0, live.task, 10, 20)
    chunk = await asyncio.wait_for(reading, 1)
    assert [s.token for s in chunk.samples] == [20]
