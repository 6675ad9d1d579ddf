"""Role changes and the choice of both machines, worked out by hand."""

import numpy as np
import pytest
from placing import place, place_if_room

from splitwise.scheduling.cluster_state import (
    ClusterState,
    bring_back,
    go_home,
    is_idle,
    new_cluster,
    rank,
    read_singly,
    set_draining,
    set_home,
    take_out,
    with_machine,
)
from splitwise.scheduling.placement import can_serve
from splitwise.scheduling.pool import Pool
from splitwise.scheduling.ranking import NOBODY


def cluster(pools: str, capacity: int = 10_000) -> ClusterState:
    home = np.array(["PTM".index(letter) for letter in pools], dtype=np.int8)
    return new_cluster(home, np.full(len(pools), capacity, dtype=np.int64))


def load(c: ClusterState, machine: int, pending: int = 0, waiting: int = 0, kv: int = 0) -> None:
    c.pending_tokens[machine] = pending
    c.waiting[machine] = waiting
    c.kv_tokens[machine] = kv
    rank(c, machine)


def test_least_pending_prompt_and_least_promised_token_machine() -> None:
    c = cluster("PPTT")
    load(c, 0, pending=100)
    load(c, 2, kv=50)
    assert place(c, 1000, 1100, 8192, True) == (1, 3)


def test_a_long_queue_pulls_the_least_pending_token_machine_into_mixed() -> None:
    c = cluster("PTT")
    load(c, 0, pending=8000, waiting=1)
    load(c, 1, pending=5)
    assert place(c, 1000, 1100, 8192, True) == (2, 1)
    assert c.pool[2] == Pool.MIXED
    assert c.role_changes[2] == 1
    go_home(c, 2)
    assert c.pool[2] == Pool.TOKEN


def test_an_idle_machine_takes_a_prompt_of_any_length() -> None:
    c = cluster("PT", capacity=100_000)
    assert place(c, 20_000, 20_100, 8192, True) == (0, 1)


def test_full_token_memory_pulls_a_prompt_machine_into_mixed() -> None:
    c = cluster("PPT")
    load(c, 2, kv=9_500)
    load(c, 0, kv=100)
    assert place(c, 1000, 1100, 8192, True) == (0, 1)
    assert c.pool[1] == Pool.MIXED


def test_without_role_changes_a_phase_waits_for_its_own_machines() -> None:
    c = cluster("PTM")
    load(c, 1, pending=3, kv=9_500)
    load(c, 2, pending=3, kv=9_500)
    load(c, 0, pending=10)
    assert place(c, 1000, 1100, 8192, False) == (0, 1)
    take_out(c, 0)
    assert place(c, 1000, 1100, 8192, False) == (2, 1)
    take_out(c, 2)
    assert place(c, 1000, 1100, 8192, False) == (1, 1)  # nobody else is left


def test_a_mixed_cluster_uses_the_least_pending_machine_for_both() -> None:
    c = cluster("MM")
    load(c, 0, pending=7)
    assert place(c, 1000, 1100, 8192, True) == (1, 1)


def test_what_never_fits_the_least_pending_machine_goes_to_one_that_holds_it() -> None:
    home = np.array([Pool.MIXED, Pool.MIXED], dtype=np.int8)
    c = new_cluster(home, np.array([1_000, 5_000]))
    load(c, 1, pending=900)
    assert place(c, 1500, 1600, 8192, True) == (1, 1)
    assert place(c, 500, 600, 8192, True) == (0, 0)


def test_who_computes_both_phases_without_being_chosen_for_a_pull_stays_in_its_pool() -> None:
    """A machine that is pulled and then gets no work would never be sent home."""
    c = new_cluster(np.array([Pool.TOKEN, Pool.MIXED], dtype=np.int8), np.array([1000, 1000]))
    load(c, 0, pending=1, kv=900)
    load(c, 1, pending=9000, waiting=1, kv=900)
    assert place(c, 500, 600, 8192, True) == (0, 0)
    assert c.pool.tolist() == [Pool.TOKEN, Pool.MIXED]
    c = new_cluster(np.array([Pool.TOKEN, Pool.TOKEN, Pool.MIXED], np.int8), np.array([9, 9, 900]))
    load(c, 2, pending=9000, waiting=1)
    assert place(c, 500, 600, 8192, True) == (2, 2)
    assert c.pool.tolist() == [Pool.TOKEN, Pool.TOKEN, Pool.MIXED]


def test_a_lost_machine_is_not_picked_until_it_is_back() -> None:
    c = cluster("PTT")
    take_out(c, 1)
    assert place(c, 10, 20, 8192, True) == (0, 2)
    take_out(c, 2)
    assert place(c, 10, 20, 8192, True) == (0, 0)
    assert can_serve(c)
    take_out(c, 0)
    assert place(c, 10, 20, 8192, True) == (NOBODY, NOBODY)
    assert not can_serve(c)
    load(c, 1, pending=5, waiting=2, kv=7)
    bring_back(c, 1, Pool.MIXED, 5_000)
    assert is_idle(c, 1) and c.home[1] == Pool.MIXED
    assert place(c, 10, 20, 8192, True) == (1, 1)


def test_a_cluster_grows_from_nothing() -> None:
    c = cluster("")
    assert place(c, 10, 20, 8192, True) == (NOBODY, NOBODY)
    c = with_machine(c, Pool.PROMPT, 10_000)
    c = with_machine(c, Pool.TOKEN, 10_000)
    assert place(c, 10, 20, 8192, True) == (0, 1)


def test_a_newcomer_changes_nothing_for_the_others() -> None:
    c = cluster("PTT")
    load(c, 0, pending=8000, waiting=1)
    load(c, 1, pending=5)
    assert place(c, 1000, 1100, 8192, True) == (2, 1)  # which pulls machine 2
    load(c, 1, pending=6, kv=1100)
    load(c, 2, pending=1000, waiting=1, kv=1001)
    take_out(c, 0)
    grown = with_machine(c, Pool.PROMPT, 7)
    for name in ("home", "pool", "up", "pending_tokens", "waiting", "kv_tokens", "role_changes"):
        assert getattr(grown, name)[:3].tolist() == getattr(c, name).tolist(), name
    assert grown.kv_capacity_tokens.tolist() == [10_000, 10_000, 10_000, 7]
    assert place(grown, 6, 7, 8192, True) == (3, 1)
    bring_back(grown, 0, Pool.PROMPT, 10_000)
    assert place(grown, 6, 7, 8192, True) == (0, 1)


def test_a_request_that_has_to_wait_pulls_nobody() -> None:
    c = cluster("PT", capacity=1000)
    load(c, 1, kv=950)
    load(c, 0, kv=950)
    assert place_if_room(c, 50, 51, 8192, True) == (NOBODY, NOBODY)
    assert c.pool.tolist() == [Pool.PROMPT, Pool.TOKEN]
    load(c, 0, kv=949)
    assert place_if_room(c, 50, 51, 8192, True) == (0, 0)
    assert c.pool.tolist() == [Pool.MIXED, Pool.TOKEN]


def test_an_idle_machine_has_room_for_a_request_of_its_whole_cache() -> None:
    c = cluster("PT", capacity=1000)
    prompt, token = place_if_room(c, 999, 1000, 8192, True)
    assert prompt == token != NOBODY
    assert place_if_room(cluster("M", capacity=1000), 999, 1000, 8192, True) == (0, 0)


def test_a_request_of_one_token_needs_no_token_machine_and_no_room_on_one() -> None:
    c = cluster("TP", capacity=1000)
    load(c, 0, kv=1000)
    assert place_if_room(c, 500, 501, 8192, True, True) == (1, 1)
    assert c.pool.tolist() == [Pool.TOKEN, Pool.PROMPT]
    load(c, 1, pending=8000, waiting=1)
    assert place_if_room(c, 500, 501, 8192, True, True) == (0, 0)  # it helps out with the prompt
    assert c.pool.tolist() == [Pool.MIXED, Pool.PROMPT]


def test_a_draining_machine_gets_nothing_new_until_it_drains_no_more() -> None:
    c = new_cluster(np.array([0, 1, 1], np.int8), np.array([1000, 1000, 5000]))
    set_draining(c, 2, True)
    assert place(c, 10, 20, 8192, True) == (0, 1)
    assert place(c, 2000, 2010, 8192, True) == (NOBODY, NOBODY)  # it alone could hold that
    load(c, 1, kv=50)
    load(c, 2, kv=10)  # what it has may change; it stays out
    assert place(c, 10, 20, 8192, True) == (0, 1)
    grown = with_machine(c, Pool.PROMPT, 1000)
    assert grown.draining.tolist() == [False, False, True, False]
    set_draining(c, 2, False)
    assert place(c, 10, 20, 8192, True) == (0, 2)
    for machine in range(3):
        assert can_serve(c)
        set_draining(c, machine, True)
    assert not can_serve(c)
    take_out(c, 1)
    bring_back(c, 1, Pool.TOKEN, 1000)
    assert can_serve(c)


def test_a_new_home_counts_at_once_and_for_good() -> None:
    c = cluster("PTT")
    load(c, 2, pending=3, kv=40)
    set_home(c, 2, Pool.PROMPT)
    load(c, 0, pending=100)
    assert c.pool.tolist() == [Pool.PROMPT, Pool.TOKEN, Pool.PROMPT]
    assert c.role_changes.tolist() == [0, 0, 1]
    assert place(c, 10, 20, 8192, True) == (2, 1)
    load(c, 2)
    go_home(c, 2)
    assert c.pool[2] == Pool.PROMPT


def test_a_machine_that_is_pulled_keeps_its_place_where_its_home_is_not_changed() -> None:
    c = cluster("PT")
    load(c, 0, pending=8000, waiting=1)
    assert place(c, 1000, 1100, 8192, True) == (1, 1)
    set_home(c, 1, Pool.TOKEN)
    assert c.pool[1] == Pool.MIXED
    set_home(c, 1, Pool.PROMPT)
    assert c.pool[1] == Pool.PROMPT


@pytest.mark.parametrize("pools", ["P", "T", "M", "PT"])
def test_who_can_serve(pools: str) -> None:
    assert can_serve(cluster(pools))
    assert not can_serve(cluster(""))


def test_nobody_up() -> None:
    c = cluster("PT")
    c.up[:] = False
    rank(c, 0)
    rank(c, 1)
    assert place(c, 10, 20, 8192, True) == (NOBODY, NOBODY)


def test_read_singly_it_is_the_same_cluster() -> None:
    """Plain numbers, the same decisions, and what is written shows in the arrays."""
    arrays = cluster("PPTTM" * 3, capacity=20_000)
    draw = np.random.default_rng(0)
    for _ in range(300):
        load(arrays, int(draw.integers(15)), *draw.integers(0, (9000, 3, 20_000)).tolist())
        copied = ClusterState._make(
            type(part)._make(map(np.copy, part)) if isinstance(part, tuple) else np.copy(part)
            for part in arrays
        )
        singly = read_singly(copied)
        assert type(singly.kv_tokens[0]) is int
        tokens = int(draw.integers(1, 9000))
        assert place(singly, tokens, tokens + 200, 8192, True) == place(
            arrays, tokens, tokens + 200, 8192, True
        )
        assert copied.pool.tolist() == arrays.pool.tolist() == singly.pool.tolist()
