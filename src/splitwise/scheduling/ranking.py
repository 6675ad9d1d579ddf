"""Who is least loaded: a winner tree, so that a decision costs the same among 10 or 1,000 machines.

The leaves are the machines, each inner node holds the winner of its two children, and the root
is the machine with the least key. Changing a key replays one path, log2(machines) matches at most.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitwise.scheduling.shared import shared

NOBODY: Final = -1
OUT: Final = np.inf
"""The key of a machine that takes no part in a ranking."""


class Ranking(NamedTuple):
    """``key`` has one entry a leaf; ``winner`` one a node, the root at 1, leaves in the end."""

    key: NDArray[np.float64]
    winner: NDArray[np.int32]


def new_ranking(machines: int) -> Ranking:
    """A ranking of ``machines`` leaves that all stand out."""
    size = 1
    while size < max(machines, 2):
        size *= 2
    winner = np.zeros(2 * size, dtype=np.int32)
    winner[size:] = np.arange(size)
    for node in range(size - 1, 0, -1):
        winner[node] = winner[2 * node]
    return Ranking(np.full(size, OUT), winner)


@shared
def first(ranking: Ranking) -> int:
    """The machine with the least key, the lowest index of equals; NOBODY if all stand out."""
    best = ranking.winner[1]
    if ranking.key[best] == OUT:
        return NOBODY
    return int(best)


@shared
def set_key(ranking: Ranking, machine: int, key: float) -> None:
    """Give ``machine`` a new key and replay its matches."""
    if ranking.key[machine] == key:
        return
    ranking.key[machine] = key
    node = (len(ranking.key) + machine) // 2
    while node >= 1:
        left = ranking.winner[2 * node]
        right = ranking.winner[2 * node + 1]
        best = right if ranking.key[right] < ranking.key[left] else left
        if ranking.winner[node] == best and best != machine:
            return  # nobody above noticed
        ranking.winner[node] = best
        node //= 2
