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
    """
    runs: list[Run] = []
    for source_block, target_block in zip(source, target, strict=True):
        if runs:
            last = runs[-1]
            follows = (last.source + last.length, last.target + last.length)
            if follows == (source_block, target_block):
                runs[-1] = last._replace(length=last.length + 1)
                continue
        runs.append(Run(source_block, target_block, 1))
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
