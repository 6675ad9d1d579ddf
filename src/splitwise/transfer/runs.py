"""Block tables as runs: neighbours that can be moved in one copy."""

from collections.abc import Sequence
from typing import NamedTuple


class Run(NamedTuple):
    """``length`` blocks that follow each other in the source and in the target alike."""

    source: int
    target: int
    length: int


def merge_runs(source: Sequence[int], target: Sequence[int]) -> list[Run]:
    """Pair block ``source[i]`` with block ``target[i]`` and merge what is contiguous in both.

    Returns the fewest runs that keep the table's order.

    Raises:
        ValueError: there are not as many of the one as of the other.
    """
    if len(source) != len(target):
        raise ValueError(f"{len(source)} blocks cannot be paired with {len(target)}")
    runs: list[Run] = []
    first = 0
    for end in range(1, len(source) + 1):
        is_last = end == len(source)
        if is_last or source[end] != source[end - 1] + 1 or target[end] != target[end - 1] + 1:
            runs.append(Run(source[first], target[first], end - first))
            first = end
    return runs


def cut_runs(runs: Sequence[Run], most: int) -> list[Run]:
    """The same blocks in runs of at most ``most`` (at least 1) of them."""
    most = max(1, most)
    return [
        Run(run.source + first, run.target + first, min(most, run.length - first))
        for run in runs
        for first in range(0, run.length, most)
    ]


def contiguous(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """The runs of one block table, as (first block, length)."""
    return [(run.source, run.length) for run in merge_runs(blocks, blocks)]
