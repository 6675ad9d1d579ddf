"""The shipped policies, against rules written down otherwise."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from splitwise.scheduling.cluster_state import ClusterState, new_cluster, rank, set_draining
from splitwise.scheduling.decision import Placement, PlacementRequest, PlacementRules
from splitwise.scheduling.draws import draw
from splitwise.scheduling.policies import all_mixed, two_choices
from splitwise.scheduling.pool import Pool
from splitwise.scheduling.ranking import NOBODY

RULES = PlacementRules(8192, True, True)


def random_cluster(draws: np.random.Generator, count: int = 8) -> ClusterState:
    pools = draws.integers(0, 3, count).astype(np.int8)
    cluster = new_cluster(pools, draws.integers(100, 1000, count))
    cluster.pending_tokens[:] = draws.integers(0, 5, count) * 100
    cluster.kv_tokens[:] = draws.integers(0, cluster.kv_capacity_tokens + 1)
    cluster.decodes[:] = draws.integers(0, 2, count)
    cluster.max_decodes[:] = draws.integers(1, 3, count)
    cluster.up[:] = draws.random(count) < 0.8
    for machine in range(count):
        rank(cluster, machine)
    set_draining(cluster, int(draws.integers(count)), True)
    return cluster


def room_of(cluster: ClusterState) -> NDArray[np.int64]:
    left = cluster.kv_capacity_tokens - cluster.kv_tokens
    return np.where(cluster.decodes >= cluster.max_decodes, 0, left)


def wanted_two(cluster: ClusterState, request: PlacementRequest) -> tuple[int, int]:
    def least(pools: tuple[Pool, ...], kv: int, which: int, by_room: bool) -> int:
        takes = cluster.up & ~cluster.draining & np.isin(cluster.pool, pools)
        room = room_of(cluster)
        able = np.flatnonzero(takes & (room >= kv))
        if not len(able):
            able = np.flatnonzero(takes & (cluster.kv_capacity_tokens >= kv))
        if not len(able):
            return NOBODY
        first = draw(len(able), request.number, request.attempt, which)
        others = [i for i in range(len(able)) if i != first]
        pair = [able[first]]
        if others:
            second = draw(len(others), request.number, request.attempt, which + 1)
            pair.append(able[others[second]])
        return int(min(pair, key=lambda m: -room[m] if by_room else cluster.pending_tokens[m]))

    prompt = least((Pool.PROMPT, Pool.MIXED), request.prompt_tokens + 1, 0, False)
    token = least((Pool.TOKEN, Pool.MIXED), request.kv_tokens, 2, True)
    if NOBODY in (prompt, token):
        prompt = token = least(tuple(Pool), request.kv_tokens, 4, False)
    return prompt, token


@pytest.mark.parametrize("seed", range(300))
def test_the_less_loaded_of_two(seed: int) -> None:
    draws = np.random.default_rng(seed)
    cluster = random_cluster(draws)
    prompt = int(draws.integers(1, 900))
    kv_tokens = prompt + int(draws.integers(1, 90))
    request = PlacementRequest(seed, seed % 3, 0, prompt, kv_tokens, False)
    assert two_choices.place(cluster, request, RULES)[:2] == wanted_two(cluster, request)


def test_two_choices_reach_every_machine_evenly() -> None:
    cluster = new_cluster(np.zeros(5, np.int8), np.full(5, 1000))
    cluster.pool[4] = Pool.TOKEN
    for machine in range(5):
        rank(cluster, machine)
    placed = [
        two_choices.place(cluster, PlacementRequest(i, 0, 0, 10, 20, False), RULES)
        for i in range(4000)
    ]
    counts = Counter(placement.prompt for placement in placed)
    assert set(counts) == {0, 1, 2, 3}
    assert min(counts.values()) > 850  # of 1000, six deviations away
    assert {placement.token for placement in placed} == {4}
    repeats = sum(one.prompt == two.prompt for one, two in pairwise(placed))
    assert 800 < repeats < 1200


@pytest.mark.parametrize("seed", range(100))
def test_all_mixed_is_the_least_pending_with_room(seed: int) -> None:
    draws = np.random.default_rng(seed)
    cluster = random_cluster(draws)
    request = PlacementRequest(1, 0, 0, 10, int(draws.integers(11, 900)), False)
    room = room_of(cluster)
    takes = cluster.up & ~cluster.draining & (cluster.kv_capacity_tokens >= request.kv_tokens)
    able = [m for m in range(8) if takes[m]]
    best = min(
        able,
        key=lambda m: (room[m] < request.kv_tokens, cluster.pending_tokens[m]),
        default=NOBODY,
    )
    assert all_mixed.place(cluster, request, RULES) == Placement(best, best, False)
