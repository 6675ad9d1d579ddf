"""Merging block tables into runs."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from splitwise.transfer.runs import contiguous, merge_runs

tables = st.lists(st.integers(0, 40), unique=True, max_size=30)


def pairs(draw_source: list[int], seed: list[int]) -> tuple[list[int], list[int]]:
    length = min(len(draw_source), len(seed))
    return draw_source[:length], seed[:length]


@given(tables, tables)
def test_runs_move_exactly_the_pairs_of_the_tables(first: list[int], second: list[int]) -> None:
    source, target = pairs(first, second)
    moved = [
        (run.source + step, run.target + step)
        for run in merge_runs(source, target)
        for step in range(run.length)
    ]
    assert moved == list(zip(source, target, strict=True))


@given(tables, tables)
def test_no_two_neighbouring_runs_could_be_one(first: list[int], second: list[int]) -> None:
    runs = merge_runs(*pairs(first, second))
    for run, after in itertools.pairwise(runs):
        ends = (run.source + run.length, run.target + run.length)
        assert ends != (after.source, after.target)


def test_merges_only_what_is_contiguous_in_both() -> None:
    assert merge_runs([4, 5, 6, 9], [0, 1, 7, 8]) == [(4, 0, 2), (6, 7, 1), (9, 8, 1)]
    assert contiguous([3, 4, 5, 1, 2]) == [(3, 3), (1, 2)]
    assert merge_runs([], []) == []
