"""Role changes and the choice of both machines, worked out by hand."""

import numpy as np

from splitwise.scheduling.placement import Cluster, go_home, new_cluster, place, rank
from splitwise.scheduling.pools import Pool
from splitwise.scheduling.ranking import NOBODY


def cluster(pools: str, capacity: int = 10_000) -> Cluster:
    home = np.array(["PTM".index(letter) for letter in pools], dtype=np.int8)
    return new_cluster(home, np.full(len(pools), capacity, dtype=np.int64))


def load(c: Cluster, machine: int, pending: int = 0, waiting: int = 0, kv: int = 0) -> None:
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


def test_without_role_changes_one_machine_does_both() -> None:
    c = cluster("PT")
    load(c, 1, pending=3, kv=9_500)
    load(c, 0, pending=10)
    assert place(c, 1000, 1100, 8192, False) == (1, 1)


def test_a_mixed_cluster_uses_the_least_pending_machine_for_both() -> None:
    c = cluster("MM")
    load(c, 0, pending=7)
    assert place(c, 1000, 1100, 8192, True) == (1, 1)


def test_what_never_fits_the_chosen_machines_goes_to_the_roomiest() -> None:
    home = np.array([Pool.MIXED, Pool.MIXED], dtype=np.int8)
    c = new_cluster(home, np.array([1_000, 5_000]))
    load(c, 1, pending=900)
    assert place(c, 1500, 1600, 8192, True) == (1, 1)
    assert place(c, 500, 600, 8192, True) == (0, 0)


def test_nobody_up() -> None:
    c = cluster("PT")
    c.up[:] = False
    rank(c, 0)
    rank(c, 1)
    assert place(c, 10, 20, 8192, True) == (NOBODY, NOBODY)
