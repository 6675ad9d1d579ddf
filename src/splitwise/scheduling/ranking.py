"""Who is least loaded: a winner tree, so that a decision costs the same among 10 or 1,000 machines.

The leaves are the machines, each inner node holds the winner of its two children, and the root
is the machine with the least key. Changing a key replays one path, log2(machines) matches at most.
A ``Ranking`` has several such trees over the same machines, one a row.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitwise.scheduling.shared import shared

NOBODY: Final = -1
OUT: Final = np.inf
"""The key of a machine that takes no part in a ranking."""


class Ranking(NamedTuple):
    """``key`` [rows, leaves]; ``winner`` [rows, nodes], the root at 1, leaves in the end."""

    key: NDArray[np.float64]
    winner: NDArray[np.int32]


def new_ranking(rows: int, machines: int) -> Ranking:
    """Trees of ``machines`` leaves that all stand out."""
    size = 1
    while size < max(machines, 2):
        size *= 2
    winner = np.zeros((rows, 2 * size), dtype=np.int32)
    winner[:, size:] = np.arange(size)
    for node in range(size - 1, 0, -1):
        winner[:, node] = winner[:, 2 * node]
    return Ranking(np.full((rows, size), OUT), winner)


@shared
def first(ranking: Ranking, row: int) -> int:
    """The machine with the least key, the lowest index of equals; NOBODY if all stand out."""
    best = ranking.winner[row, 1]
    if ranking.key[row, best] == OUT:
        return NOBODY
    return int(best)


@shared
def set_key(ranking: Ranking, row: int, machine: int, key: float) -> None:
    """Give ``machine`` a new key and replay its matches."""
    if ranking.key[row, machine] == key:
        return
    ranking.key[row, machine] = key
    node = (ranking.key.shape[1] + machine) // 2
    while node >= 1:
        left = ranking.winner[row, 2 * node]
        right = ranking.winner[row, 2 * node + 1]
        best = right if ranking.key[row, right] < ranking.key[row, left] else left
        if ranking.winner[row, node] == best and best != machine:
            return  # nobody above noticed
        ranking.winner[row, node] = best
        node //= 2
