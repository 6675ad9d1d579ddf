"""How the cluster scheduler uses its queue, driven message by message."""

import time
from typing import Any

import pytest
from scripted_cluster import STOP, Link, ScriptedCluster, request

from splitwise.cluster.limits import ClusterLimits
from splitwise.cluster.request import LiveRequest, RequestState
from splitwise.protocol.generation import Overloaded, Unavailable
from splitwise.protocol.messages import MachineStatus, Preempted, RunPrompt
from splitwise.scheduling.decision import Placement
from splitwise.scheduling.policies import default
from splitwise.scheduling.policies.policy import DEFAULT, Hooks, Policy
from splitwise.scheduling.pool import Pool


def full(policy: Policy = DEFAULT) -> tuple[ScriptedCluster, LiveRequest]:
    """A machine of 1024 tokens and the request that fills it."""
    f = ScriptedCluster(Pool.MIXED, policy=policy)
    return f, f.cluster.submit(request(prompt=1010, max_tokens=20))


def started(f: ScriptedCluster) -> list[int]:
    """Lengths of the prompts sent to machines, in order; tests tell their requests by it."""
    return [m.spec.prompt_tokens for m in f.links[0].told if isinstance(m, RunPrompt)][1:]


async def test_priorities_then_shares_then_order() -> None:
    f, big = full()
    for number, priority in enumerate([5, 0, 0, -1, 5, 0]):
        f.cluster.submit(request(prompt=10 + number, priority=priority))
    for number in range(2):
        f.cluster.submit(request(prompt=20 + number, client="other"))
    f.cluster.fail_overdue(0)
    assert sorted(f.metrics.priorities) == [-1, 0, 0, 0, 0, 0, 5, 5]
    big.cancel()
    # Of the priority 0: 11 tokens for one, 20 for the other, so that the first is next again.
    assert started(f) == [13, 11, 20, 12, 21, 15, 10, 14]


async def test_what_was_preempted_comes_first_and_is_not_charged_again() -> None:
    f = ScriptedCluster(Pool.MIXED)
    old = f.cluster.submit(request(prompt=500, max_tokens=400, client="a"))
    rest = f.cluster.submit(request(prompt=400, max_tokens=400, client="a"))
    f.output(0, old.task, 500, 7)
    late = f.cluster.submit(request(prompt=300, client="a"))
    other = f.cluster.submit(request(prompt=310, client="b"))
    assert late.state is other.state is RequestState.WAITING
    f.cluster.receive(0, Preempted(old.task))
    assert old.state is RequestState.PROMPT  # it went before those that waited, as it fitted
    rest.cancel()
    assert late.state is RequestState.PROMPT and other.state is RequestState.WAITING
    assert f.metrics.preemptions == 1


async def test_output_counts_as_served() -> None:
    f = ScriptedCluster(Pool.MIXED)
    talker = f.cluster.submit(request(prompt=500, max_tokens=300, client="talker"))
    big = f.cluster.submit(request(prompt=400, max_tokens=2, client="somebody"))
    f.cluster.submit(request(prompt=251, max_tokens=2, client="talker"))
    f.cluster.submit(request(prompt=252, max_tokens=2, client="quiet"))
    f.output(0, talker.task, 500, 7)
    big.cancel()
    runs = [m.spec.prompt_tokens for m in f.links[0].told if isinstance(m, RunPrompt)]
    assert runs == [500, 400, 252, 251]  # the talker came first, but has had a token


async def test_prompts_are_held_while_the_prompt_machines_queue_is_long() -> None:
    """Else a light client would stand behind all of a heavy one's on the machine."""
    limits = ClusterLimits(prompt_queue_threshold_tokens=33, change_roles=False)
    f = ScriptedCluster(Pool.MIXED, limits=limits)
    heavy = [f.cluster.submit(request(client="heavy")) for _ in range(6)]
    light = f.cluster.submit(request(client="light"))
    states = [live.state for live in heavy]
    assert states == [RequestState.PROMPT] * 3 + [RequestState.WAITING] * 3
    f.started(0, heavy[0].task)
    f.output(0, heavy[0].task, 10, STOP, finish=True)
    assert light.state is RequestState.PROMPT and heavy[3].state is RequestState.WAITING
    f.output(0, heavy[1].task, 10, STOP, finish=True)
    assert heavy[3].state is RequestState.PROMPT and heavy[4].state is RequestState.WAITING


async def test_the_greediest_client_makes_room_for_another() -> None:
    f = ScriptedCluster(Pool.MIXED, limits=ClusterLimits(max_waiting_requests=5))
    big = f.cluster.submit(request(prompt=1010, client="heavy"))
    heavy = [f.cluster.submit(request(client="heavy")) for _ in range(4)]
    light = [f.cluster.submit(request(client="light")) for _ in range(2)]
    for live in heavy[2:]:
        with pytest.raises(Overloaded, match="5 requests"):
            await live.next()
    for client in ("light", "heavy"):
        with pytest.raises(Overloaded) as refused:
            f.cluster.submit(request(client=client))
        assert 1 <= refused.value.retry_after_s <= 60
    assert f.metrics.refusals == [True, True, False, False]
    urgent = f.cluster.submit(request(client="heavy", priority=-1))
    with pytest.raises(Overloaded):
        await heavy[1].next()
    big.cancel()
    for live in (urgent, heavy[0], *light):
        assert live.state is RequestState.PROMPT
        live.cancel()
    f.assert_idle()


async def test_who_leaves_the_queue_is_forgotten() -> None:
    f, big = full()
    waiting = [f.cluster.submit(request(client=str(i), priority=i % 3)) for i in range(30)]
    for live in waiting[::2]:
        live.cancel()
        live.cancel()
    for live in waiting[1::2]:
        live.waiting_since_s -= 1000
    f.cluster.fail_overdue(big.submitted_s)
    for live in waiting[1::2]:  # whatever their priority
        with pytest.raises(Unavailable, match="no machine had room for 600 s"):
            await live.next()
    big.cancel()
    f.assert_idle()


async def test_who_waits_is_not_tried_again_before_something_made_room() -> None:
    tried = 0

    def place(*asked: Any) -> Placement:
        nonlocal tried
        tried += 1
        return default.place(*asked)

    counted = Policy("counted", hooks=Hooks(place), own=frozenset({"place"}))
    f, big = full(counted)
    other = f.cluster.submit(request(prompt=300))
    f.started(0, big.task)
    f.output(0, big.task, 1010, 20)
    assert other.state is RequestState.WAITING
    tried = 0
    for position in range(1011, 1015):  # within the block that the next token has
        f.output(0, big.task, position, 20)
        f.cluster.receive(0, MachineStatus(64, 64, 1, 0))
    assert tried == 0
    f.output(0, big.task, 1015, STOP, finish=True)
    assert other.state is RequestState.PROMPT


async def test_a_request_whose_only_machine_is_lost_holds_up_nobody() -> None:
    f = ScriptedCluster(Pool.MIXED)
    large = Link("large", Pool.MIXED, blocks=256)
    index = f.cluster.join(large)
    long = f.cluster.submit(request(prompt=2000, max_tokens=50))
    f.output(index, long.task, 2000, 20)
    f.cluster.lose(index)
    small = f.cluster.submit(request())
    assert long.state is RequestState.WAITING and small.state is RequestState.PROMPT
    f.cluster.join(large)
    f.output(index, long.task, 2001, 20)
    f.cluster.lose(index)
    now_s = time.monotonic()
    f.cluster.fail_overdue(now_s + 29)
    f.cluster.fail_overdue(now_s + 31)
    with pytest.raises(Unavailable, match=r"holds 2016 tokens of cache, for 30 s"):
        assert len((await long.next()).samples) == 2
        await long.next()
    small.cancel()
    f.assert_idle()


async def test_what_no_machine_could_ever_hold_is_refused_at_once() -> None:
    f = ScriptedCluster(Pool.MIXED)
    live = f.cluster.submit(request(prompt=2000, max_tokens=50))
    with pytest.raises(Unavailable, match="2016 tokens of cache, and the largest machine has 1024"):
        await live.next()
    f.assert_idle()


async def test_small_requests_pass_a_large_one_that_waits_for_room() -> None:
    f = ScriptedCluster(Pool.MIXED)
    holder = f.cluster.submit(request(prompt=700, max_tokens=300))
    large = f.cluster.submit(request(prompt=600))
    small = [f.cluster.submit(request(prompt=100)) for _ in range(8)]
    waits = [live.state is RequestState.WAITING for live in (holder, large, *small)]
    assert waits == [False, True, False, False, *[True] * 6]  # as many as there was room for
    for live in small[:5]:
        f.output(0, live.task, 100, STOP, finish=True)
    assert small[4].state is RequestState.ENDED and small[5].state is RequestState.WAITING
    holder.cancel()
    assert large.state is RequestState.PROMPT
    for live in (large, *small[5:]):
        live.cancel()
    f.assert_idle()
