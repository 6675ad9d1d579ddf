"""The winner tree against a plain search for the minimum."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from splitwise.scheduling.ranking import (
    NOBODY,
    OUT,
    first,
    first_of_leaves,
    new_ranking,
    rank_all,
    set_key,
)

changes = st.lists(
    st.tuples(st.integers(0, 8), st.one_of(st.integers(0, 5), st.just(OUT))), max_size=60
)


@given(st.integers(9, 20), changes)
def test_first_is_the_least_and_the_lowest_of_equals(
    machines: int, moves: list[tuple[int, float]]
) -> None:
    ranking = new_ranking(3, machines)
    keys = [OUT] * machines
    for machine, key in moves:
        set_key(ranking, 1, machine, key)
        keys[machine] = key
        least = min(keys)
        assert first(ranking, 1) == (NOBODY if least == OUT else keys.index(least))


@given(st.permutations(range(13)), changes, st.integers(0, 12))
def test_a_run_of_leaves_is_searched_for_the_machines_that_stand_there(
    order: list[int], moves: list[tuple[int, float]], leaves: int
) -> None:
    ranking = new_ranking(2, 13)
    keys = [float(machine % 4) for machine in range(13)]
    rank_all(ranking, np.array(order), np.array([[OUT] * 13, keys]))
    for machine, key in moves:
        set_key(ranking, 1, machine, key)
        keys[machine] = key
    among = [machine for machine in order[:leaves] if keys[machine] != OUT]
    least = min(among, key=lambda machine: (keys[machine], machine), default=NOBODY)
    assert first_of_leaves(ranking, 1, leaves) == least
    in_all = [machine for machine in range(13) if keys[machine] != OUT]
    assert first(ranking, 1) == min(in_all, key=lambda m: (keys[m], m), default=NOBODY)
