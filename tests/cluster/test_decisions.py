"""A policy in the server: what it says is done if it can be, and else costs nobody anything."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scripted_cluster import ScriptedCluster, request
from toy_cluster import load, times

from splitwise.cluster.request import RequestState
from splitwise.scheduling.decision import Placement, PlacementRequest
from splitwise.scheduling.policies.policy import Hooks, Policy, load_policy
from splitwise.scheduling.pool import Pool
from splitwise.simulation.simulate import MachineGroup, Options, simulate


def policy(place: Callable[..., Any]) -> Policy:
    return Policy("mine.py", "mine", Hooks(place), frozenset({"place"}))


POOLS = (Pool.PROMPT, Pool.PROMPT, Pool.TOKEN, Pool.TOKEN)


async def test_what_a_policy_says_is_done() -> None:
    asked: list[PlacementRequest] = []

    def place(cluster: Any, request: PlacementRequest, rules: Any) -> Placement:
        asked.append(request)
        return Placement(3, 1, True)

    f = ScriptedCluster(*POOLS, policy=policy(place))
    live = f.cluster.submit(request(prompt=20, max_tokens=5, priority=2))
    assert (live.prompt_machine, live.token_machine) == (3, 1)
    assert f.pools() == [Pool.PROMPT, Pool.MIXED, Pool.TOKEN, Pool.MIXED]
    alone = f.cluster.submit(request(prompt=20, max_tokens=1))
    assert (alone.prompt_machine, alone.token_machine) == (3, 3)
    f.cluster.lose(f.indices[1])
    assert asked == [
        PlacementRequest(1, 0, 2, 20, 32, False),
        PlacementRequest(2, 0, 0, 20, 32, True),
        PlacementRequest(1, 1, 2, 20, 32, False),
    ]
    live.cancel()
    alone.cancel()
    f.assert_idle()


def raising(cluster: Any, request: Any, rules: Any) -> Placement:
    raise KeyError("no")


@pytest.mark.parametrize(
    ("place", "why"),
    [
        (raising, "raised KeyError"),
        (
            lambda cluster, request, rules: None,
            "raised TypeError: it said None; it must say Placement",
        ),
        (lambda cluster, request, rules: Placement(0, 7, True), "said 0, 7: machines are num"),
        (lambda cluster, request, rules: Placement(0, -1, True), "said 0, -1: machines are num"),
        (lambda cluster, request, rules: Placement(0, 3, True), "said 0, 3: a machine that is do"),
        (lambda cluster, request, rules: Placement(1, 2, True), "said 1, 2: a machine that is dr"),
        (lambda cluster, request, rules: Placement(4, 2, True), "said 4, 2: a machine whose cach"),
        (
            lambda *asked: Placement(*((-1, -1) if asked[1].number == 1 else (0, 2)), True),
            "said -1, -1: it has to wait f",
        ),
        (lambda cluster, request, rules: cluster.kv_tokens.__setitem__(0, 9), "raised TypeError"),
    ],
)
async def test_what_cannot_be_the_default_decides(
    place: Callable[..., Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    f = ScriptedCluster(*POOLS, policy=policy(place))
    small = ScriptedCluster(Pool.PROMPT, blocks=2).links[0]
    small.register.machine_id = "small"
    f.cluster.join(small)
    f.cluster.lose(f.indices[3])
    f.cluster.pools.drain("m1")
    lives = [f.cluster.submit(request(prompt=100)) for _ in range(3)]
    assert [live.state for live in lives] == [RequestState.PROMPT] * 3
    assert {(live.prompt_machine, live.token_machine) for live in lives} <= {(0, 2), (0, 0)}
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.message.startswith(f"policy mine.py: place of request 1 {why}")
    for live in lives:
        live.cancel()
    machines = f.cluster.roster.cluster
    assert not any(machines.kv_tokens)
    assert not any(machines.pending_tokens)


async def test_who_has_to_wait_is_asked_for_again() -> None:
    """The policy has all but the first wait as long as another runs."""

    def place(cluster: Any, request: PlacementRequest, rules: Any) -> Placement:
        is_busy = any(cluster.kv_tokens)
        return Placement(-1, -1, False) if is_busy else Placement(0, 0, False)

    f = ScriptedCluster(Pool.MIXED, policy=policy(place))
    lives = [f.cluster.submit(request()) for _ in range(3)]
    for i, live in enumerate(lives):
        assert [one.state for one in lives[i:]] == [
            RequestState.PROMPT,
            *[RequestState.WAITING] * (2 - i),
        ]
        live.cancel()
    f.assert_idle()


async def test_a_machine_without_room_is_waited_for() -> None:
    f = ScriptedCluster(Pool.MIXED, Pool.MIXED, policy=policy(lambda *asked: (0, 0, False)))
    first = f.cluster.submit(request(prompt=1000))
    second = f.cluster.submit(request(prompt=1000))
    assert second.state is RequestState.WAITING
    first.cancel()
    assert (second.state, second.prompt_machine) == (RequestState.PROMPT, 0)


async def test_two_choices_places_the_same_here_and_in_the_simulator() -> None:
    """While no prompt is done, so that only the decisions change the loads."""
    pools = [Pool.PROMPT] * 4 + [Pool.TOKEN] * 3 + [Pool.MIXED] * 2
    draws = np.random.default_rng(3)
    sizes = list(zip(draws.integers(5, 400, 60), draws.integers(1, 90, 60), strict=True))
    chosen = load_policy("two-choices")
    f = ScriptedCluster(*pools, policy=chosen, blocks=512)
    lives = [f.cluster.submit(request(int(prompt), int(tokens))) for prompt, tokens in sizes]
    served = [(live.prompt_machine, live.token_machine) for live in lives]
    assert all(live.state is RequestState.PROMPT for live in lives)

    kind = times(kv_capacity_tokens=512 * 16, prompt_s_per_token=1.0)
    groups = [MachineGroup(str(i), kind, pool, 1) for i, pool in enumerate(pools)]
    requests = load(*((1 + 1e-6 * i, *size) for i, size in enumerate(sizes)))
    result = simulate(requests, groups, Options(cache="grown", policy=chosen))
    pairs = zip(result.prompt_machine.tolist(), result.token_machine.tolist(), strict=True)
    assert list(pairs) == served
    assert len(set(served)) > 20
