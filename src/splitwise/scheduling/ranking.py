"""Who comes first by some key: a winner tree, so that a decision costs the same among 10 or 1,000
machines.

The leaves are the machines, each inner node holds the winner of its two children, and the root
is the machine with the least key. Changing a key replays one path, log2(machines) matches at most.
A ``Ranking`` has several such trees over the same machines, one a row. The machines may stand in
any order at the leaves, so that a run of leaves, whose first is found as fast, means something.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitwise.scheduling.shared import shared

NOBODY: Final = -1
OUT: Final = np.inf
"""The key of a machine that takes no part in a ranking."""


class Ranking(NamedTuple):
    """``key`` [rows, leaves], by machine; ``winner`` [rows, nodes], the root at 1, the leaves in
    the end; ``leaf`` [leaves], where each machine stands."""

    key: NDArray[np.float64]
    winner: NDArray[np.int64]
    leaf: NDArray[np.int64]


def new_ranking(rows: int, machines: int) -> Ranking:
    """Trees of ``machines`` leaves, in order, that all stand out."""
    size = 1
    while size < max(machines, 2):
        size *= 2
    key = np.full((rows, size), OUT)
    ranking = Ranking(key, np.zeros((rows, 2 * size), np.int64), np.zeros(size, np.int64))
    rank_all(ranking, np.arange(machines), key[:, :machines])
    return ranking


def rank_all(ranking: Ranking, order: NDArray[np.int64], keys: NDArray[np.float64]) -> None:
    """Have the machines stand at the leaves in this order, with these keys [rows, machines]."""
    key, winner, leaf = map(np.asarray, ranking)
    size = key.shape[1]
    key[:, : len(order)] = keys
    at_leaf = np.concatenate([order, np.arange(len(order), size)])
    leaf[at_leaf] = np.arange(size)
    winner[:, size:] = at_leaf
    row = np.arange(len(key))[:, None]
    while size > 1:
        left, right = winner[:, size : 2 * size : 2], winner[:, size + 1 : 2 * size : 2]
        left_key, right_key = key[row, left], key[row, right]
        is_right = (right_key < left_key) | ((right_key == left_key) & (right < left))
        size //= 2
        winner[:, size : 2 * size] = np.where(is_right, right, left)


@shared
def first(ranking: Ranking, row: int) -> int:
    """The machine with the least key, the lowest index of equals; NOBODY if all stand out."""
    best = ranking.winner[row, 1]
    if ranking.key[row, best] == OUT:
        return NOBODY
    return int(best)


@shared
def first_of_leaves(ranking: Ranking, row: int, leaves: int) -> int:
    """``first`` of the machines that stand at the first ``leaves`` leaves; 0 or more, not all."""
    best, best_key = NOBODY, OUT
    node = ranking.key.shape[1] + leaves
    while node > 1:
        if node % 2 == 1:  # the subtree to its left lies in the run
            other = int(ranking.winner[row, node - 1])
            key = ranking.key[row, other]
            if key < best_key or (key == best_key and key != OUT and other < best):
                best, best_key = other, key
        node //= 2
    return best


@shared
def set_key(ranking: Ranking, row: int, machine: int, key: float) -> None:
    """Give ``machine`` a key, and replay its matches."""
    keys, winner = ranking.key, ranking.winner
    keys[row, machine] = key
    best, best_key = machine, key
    node = keys.shape[1] + ranking.leaf[machine]
    while node > 1:
        other = winner[row, node ^ 1]
        other_key = keys[row, other]
        if other_key < best_key or (other_key == best_key and other < best):
            best, best_key = other, other_key
        node //= 2
        if best != machine and winner[row, node] == best:
            return  # nobody above noticed
        winner[row, node] = best
