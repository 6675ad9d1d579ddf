"""A machine that runs no more requests is as full as one without cache left.

Driven message by message; all machines have cache for many more.
"""

import pytest
from scripted_cluster import Link, ScriptedCluster, request

from splitwise.cluster.limits import ClusterLimits
from splitwise.cluster.request import LiveRequest, RequestState
from splitwise.protocol.messages import Preempted
from splitwise.scheduling.policies.policy import load_policy
from splitwise.scheduling.pool import Pool

WAITING, PROMPT = RequestState.WAITING, RequestState.PROMPT
FIXED = ClusterLimits(change_roles=False)


def crowd(f: ScriptedCluster, count: int) -> list[LiveRequest]:
    return [f.cluster.submit(request(prompt=10 + i, max_tokens=50)) for i in range(count)]


def waiting(requests: list[LiveRequest]) -> list[int]:
    return [i for i, live in enumerate(requests) if live.state is WAITING]


@pytest.mark.parametrize("policy", ["default", "two-choices", "all-mixed"])
@pytest.mark.parametrize("pools", [(Pool.PROMPT, Pool.TOKEN), (Pool.MIXED,)])
async def test_what_a_machine_does_not_run_waits_and_is_served_in_order(
    policy: str, pools: tuple[Pool, ...]
) -> None:
    f = ScriptedCluster(*pools, limits=FIXED, policy=load_policy(policy), max_decodes=4)
    room = 8 if policy == "all-mixed" and len(pools) == 2 else 4
    requests = crowd(f, room + 4)
    for gone in range(4):
        assert waiting(requests) == list(range(room + gone, room + 4))
        requests[gone].cancel()
    assert waiting(requests) == []
    for live in requests:
        live.cancel()
    f.assert_idle()


@pytest.mark.parametrize("end", ["finish", "preempt", "lose"])
async def test_every_end_of_an_attempt_leaves_a_place(end: str) -> None:
    f = ScriptedCluster(Pool.MIXED, Pool.MIXED, max_decodes=2)
    one, *others = crowd(f, 5)
    assert waiting(others) == [3]
    machine = one.token_machine
    f.output(machine, one.task, 10, 7, finish=end == "finish")
    if end == "preempt":
        f.cluster.receive(machine, Preempted(one.task))
    elif end == "lose":
        f.cluster.lose(machine)
        assert len(waiting([one, *others])) == 3  # the other machine runs two
        f.cluster.join(f.links[machine])
    assert waiting([one, *others]) == ([] if end == "finish" else [4])


async def test_a_prompt_without_a_token_phase_takes_no_place() -> None:
    f = ScriptedCluster(Pool.MIXED, max_decodes=2)
    short = [f.cluster.submit(request(max_tokens=1)) for _ in range(5)]
    requests = crowd(f, 3)
    later = f.cluster.submit(request(max_tokens=1))
    assert [live.state for live in short] == [PROMPT] * 5
    assert waiting([*requests, later]) == [2, 3]  # in line, as nothing passes
    requests[0].cancel()
    assert waiting([*requests, later]) == []


async def test_machines_say_each_for_itself_how_many_they_run() -> None:
    f = ScriptedCluster(Pool.MIXED, max_decodes=1)
    f.cluster.join(Link("larger", Pool.MIXED, max_decodes=3))
    f.cluster.lose(0)
    f.cluster.join(Link("m0", Pool.MIXED, max_decodes=2))  # it was started anew, with more
    requests = crowd(f, 6)
    assert sorted(live.token_machine for live in requests[:5]) == [0, 0, 1, 1, 1]
    assert waiting(requests) == [5]


async def test_a_full_token_machine_is_helped_by_a_prompt_machine_which_goes_home() -> None:
    f = ScriptedCluster(Pool.PROMPT, Pool.PROMPT, Pool.TOKEN, max_decodes=2)
    requests = crowd(f, 3)
    assert f.pools() == [Pool.MIXED, Pool.PROMPT, Pool.TOKEN]
    assert [live.token_machine for live in requests] == [2, 2, 0]
    for live in requests:
        live.cancel()
    f.assert_idle()
