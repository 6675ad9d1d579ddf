"""Groups of machines that all reach each other."""

import itertools
import random

from splitwise.scheduling.reach import groups_of, least_pending_first


def test_one_group_where_all_reach_all() -> None:
    assert groups_of([[True] * 4] * 4) == [{0, 1, 2, 3}]
    assert groups_of([]) == []


def test_islands() -> None:
    same = [[a // 2 == b // 2 for b in range(4)] for a in range(4)]
    assert groups_of(same) == [{0, 1}, {2, 3}]


def test_one_way_is_not_enough() -> None:
    assert groups_of([[True, True], [False, True]]) == [{0}, {1}]


def test_within_a_group_all_reach_all_and_nobody_is_left_out() -> None:
    draw = random.Random(1)
    for _ in range(200):
        size = draw.randrange(1, 8)
        reaches = [[a == b or draw.random() < 0.7 for b in range(size)] for a in range(size)]
        groups = groups_of(reaches)
        assert set().union(*groups) == set(range(size))
        for group in groups:
            assert all(reaches[a][b] for a, b in itertools.product(group, group))


def test_the_idlest_machine_leads() -> None:
    assert least_pending_first([[0, 1], [2], [3, 0]], [5, 4, 9, 1]) == [[3, 0], [0, 1], [2]]
