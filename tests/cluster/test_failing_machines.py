"""Machines on which requests fail, and requests of which machines fail."""

import time

import pytest
from scripted_cluster import STOP, ScriptedCluster, request

from splitwise.cluster.limits import ClusterLimits
from splitwise.cluster.request import LiveRequest, RequestState
from splitwise.protocol.generation import GenerationFailed
from splitwise.protocol.messages import Expect, Preempted, RunPrompt, TaskFailed
from splitwise.scheduling.pool import Pool
from splitwise.scheduling.quarantine import FIRST_QUARANTINE_S, MachineRecord, quarantine_s


def fail(f: ScriptedCluster, machine: int, live: LiveRequest, in_company: bool = False) -> None:
    f.cluster.receive(machine, TaskFailed(live.task, "boom", False, in_company))


def fail_transfer(f: ScriptedCluster, live: LiveRequest) -> None:
    f.cluster.receive(live.token_machine, TaskFailed(live.task, "cut", True))


def finish(f: ScriptedCluster, live: LiveRequest) -> None:
    f.output(live.prompt_machine, live.task, len(live.history), STOP, finish=True)


def quarantined(f: ScriptedCluster) -> list[str]:
    shown = [view.machine_id for view in f.cluster.pools.show() if view.quarantined]
    assert set(shown) == f.metrics.kept_out
    return shown


async def test_a_machine_that_fails_everything_does_not_draw_all_work() -> None:
    """It is always the least pending: it has nothing to do."""
    f = ScriptedCluster(Pool.MIXED, Pool.MIXED)
    busy = f.cluster.submit(request())  # on machine 0, so that machine 1 is less pending
    lives = list[LiveRequest]()
    for _ in range(20):
        live = f.cluster.submit(request())
        lives.append(live)
        while live.token_machine == 1:
            fail(f, 1, live)
    assert all(live.state is RequestState.PROMPT and live.prompt_machine == 0 for live in lives)
    assert quarantined(f) == ["m1"]
    for live in (busy, *lives):
        finish(f, live)
    f.assert_idle()


async def test_a_retry_avoids_the_machine_that_failed_it_while_another_can_run_it() -> None:
    f = ScriptedCluster(Pool.MIXED, Pool.MIXED)
    big = f.cluster.submit(request(prompt=1000))
    assert big.prompt_machine == 0
    live = f.cluster.submit(request(prompt=100))
    fail(f, 1, live)
    assert live.state is RequestState.WAITING  # machine 0 is full, but could run it
    big.cancel()
    assert live.prompt_machine == 0
    fail(f, 0, live)
    assert live.state is RequestState.PROMPT  # nobody is left who has not failed it
    finish(f, live)
    f.assert_idle()


async def test_where_transfers_fail_one_machine_computes_both_phases() -> None:
    f = ScriptedCluster(Pool.PROMPT, Pool.TOKEN, Pool.TOKEN)
    live = f.cluster.submit(request())
    first = live.token_machine
    fail_transfer(f, live)
    assert live.token_machine not in (first, live.prompt_machine)
    fail_transfer(f, live)
    assert live.token_machine == live.prompt_machine == 0
    finish(f, live)
    f.assert_idle()


async def test_who_failed_twice_runs_alone_and_company_is_not_charged() -> None:
    f = ScriptedCluster(Pool.MIXED)
    bad, good = f.cluster.submit(request()), f.cluster.submit(request())
    for is_alone in (False, False):
        for live in (bad, good):
            assert live.is_alone is is_alone
            fail(f, 0, live, in_company=True)
    sent = [m.spec for m in f.links[0].told if isinstance(m, RunPrompt)]
    assert [spec.alone for spec in sent] == [False] * 4 + [True] * 2
    finish(f, good)
    for _ in range(3):
        fail(f, 0, bad)
    with pytest.raises(GenerationFailed, match="given up after 3 failures; last: boom"):
        await bad.next()
    assert [s.token for s in (await good.next()).samples] == [STOP]
    f.assert_idle()


async def test_progress_clears_a_request_of_suspicion() -> None:
    f = ScriptedCluster(Pool.MIXED)
    live = f.cluster.submit(request(max_tokens=50))
    for _ in range(2):
        fail(f, 0, live, in_company=True)
    assert live.is_alone
    f.output(0, live.task, 10, 20)
    f.output(0, live.task, 11, 21)
    fail(f, 0, live, in_company=True)
    assert not live.is_alone


async def test_a_request_that_breaks_its_machines_does_not_go_through_them_all() -> None:
    """One that dies of a prompt that it runs alone tells who it was."""
    f = ScriptedCluster(*[Pool.MIXED] * 9)
    live = f.cluster.submit(request())
    deaths = 0
    while live.state is RequestState.PROMPT:
        machine = live.prompt_machine
        f.started(machine, live.task)
        f.cluster.lose(machine)
        deaths += 1
    assert deaths == 5 and live.state is RequestState.ENDED
    f.assert_idle()


async def test_preemptions_that_bring_nothing_end() -> None:
    f = ScriptedCluster(Pool.PROMPT, Pool.TOKEN, Pool.TOKEN)
    live = f.cluster.submit(request())
    rounds = 0
    while live.state is RequestState.PROMPT and rounds < 1000:
        f.cluster.receive(live.token_machine, Preempted(live.task))
        rounds += 1
    assert rounds < 30
    with pytest.raises(GenerationFailed, match="preempted"):
        await live.next()
    f.assert_idle()


async def test_quarantine_ends_grows_and_leaves_somebody_to_serve() -> None:
    f = ScriptedCluster(Pool.MIXED, Pool.MIXED)
    now_s = time.monotonic()

    def fail_on(machine: int, requests: int) -> None:
        other = [f.cluster.submit(request()) for _ in range(30)]
        for live in [live for live in other if live.prompt_machine == machine][:requests]:
            fail(f, machine, live)
        for live in other:
            live.cancel()

    fail_on(0, 2)
    assert quarantined(f) == []
    fail_on(0, 1)
    assert quarantined(f) == ["m0"]
    fail_on(1, 9)
    assert quarantined(f) == ["m0"]  # not the last one
    f.cluster.fail_overdue(now_s + FIRST_QUARANTINE_S - 1)
    assert quarantined(f) == ["m0"]
    f.cluster.fail_overdue(now_s + FIRST_QUARANTINE_S + 5)
    assert quarantined(f) == []
    live = f.cluster.submit(request())
    assert live.prompt_machine == 0
    fail(f, 0, live)  # on probation one is enough
    assert quarantined(f) == ["m0"]
    f.cluster.lose(1)
    assert quarantined(f) == [] and live.state is RequestState.PROMPT
    live.cancel()
    f.assert_idle()


async def test_a_machine_that_dies_of_all_it_gets_begins_its_next_life_in_quarantine() -> None:
    f = ScriptedCluster(Pool.MIXED, Pool.MIXED)
    for _ in range(2):
        live = f.cluster.submit(request())
        finish(f, live)
    f.cluster.lose(0)
    f.cluster.join(f.links[0])
    assert quarantined(f) == []  # it had done well
    live = f.cluster.submit(request())
    assert live.prompt_machine == 0
    f.cluster.lose(0)
    f.cluster.join(f.links[0])
    assert quarantined(f) == ["m0"]
    finish(f, live)
    f.cluster.pools.drain("m0")
    assert f.links[0].is_told_to_end
    f.cluster.lose(0)
    f.assert_idle()


async def test_a_successful_request_between_failures_keeps_a_machine_in() -> None:
    f = ScriptedCluster(Pool.MIXED, Pool.MIXED)
    for _ in range(10):
        lives = [f.cluster.submit(request()) for _ in range(4)]
        for live in [live for live in lives if live.prompt_machine == 0][:1]:
            fail(f, 0, live)
        for live in lives:
            f.output(live.prompt_machine, live.task, 10, 20)
            live.cancel()
    assert quarantined(f) == []


async def test_a_prompt_machine_whose_transfers_fail_is_kept_out() -> None:
    f = ScriptedCluster(Pool.PROMPT, Pool.TOKEN, Pool.TOKEN)
    for _ in range(3):
        live = f.cluster.submit(request())
        f.output(0, live.task, 10, 20)
        fail_transfer(f, live)
        live.cancel()
    assert "m0" in quarantined(f)
    live = f.cluster.submit(request())
    assert not any(isinstance(m, Expect) for m in f.links[0].told) and live.prompt_machine != 0


def test_quarantines_grow_as_long_as_the_machine_is_not_well() -> None:
    assert [quarantine_s(times) for times in (0, 1, 2, 10)] == [5, 10, 20, 300]
    record, now_s, lasted = MachineRecord(), 0.0, list[float]()
    for pause_s in (1.0, 1.0, 1.0, 25.0):
        end_s = record.keep_out(now_s)
        lasted.append(end_s - now_s)
        now_s = end_s + pause_s
    assert lasted == [5, 10, 20, 40]
    now_s += 41
    assert record.keep_out(now_s) - now_s == 5


async def test_a_machine_that_goes_under_several_is_charged_to_none_of_them() -> None:
    """Killed or starved hosts, one after the other, give nobody up; with a machine for itself a
    request is what went wrong there, sooner or later."""
    f = ScriptedCluster(Pool.MIXED, limits=ClusterLimits(max_failures=3))
    lives = [f.cluster.submit(request()) for _ in range(2)]
    for _ in range(5):
        f.cluster.lose(0)
        assert [live.state for live in lives] == [RequestState.WAITING] * 2
        f.cluster.join(f.links[0])
    assert [live.failures for live in lives] == [0, 0]
    lives[1].cancel()
    for _ in range(3):
        f.cluster.lose(0)
        f.cluster.join(f.links[0])
    with pytest.raises(GenerationFailed):
        await lives[0].next()
    f.assert_idle()


async def test_hosts_that_say_nothing_are_no_sign_against_who_runs_alone() -> None:
    """A starved host is silent whatever runs there; one that ends under a lone prompt is a sign."""
    f = ScriptedCluster(Pool.MIXED, Pool.MIXED)
    live = f.cluster.submit(request())
    for _ in range(6):
        machine = live.prompt_machine
        f.started(machine, live.task)
        f.cluster.suspect(machine)
        f.cluster.heard_again(machine)
    assert live.is_alone and live.state is RequestState.PROMPT
    for _ in range(3):
        machine = live.prompt_machine
        f.started(machine, live.task)
        f.cluster.lose(machine)
        f.cluster.join(f.links[machine])
    with pytest.raises(GenerationFailed):
        await live.next()
    f.assert_idle()
