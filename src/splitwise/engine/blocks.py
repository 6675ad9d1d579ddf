"""Which blocks of a paged KV cache are free.

A block is in exactly one of two places: in the pool's sorted list of free runs, or in the hands of
the request that allocated it. Free blocks are kept as runs ``[start, end)`` so that a request gets
as few and as long runs as possible: the transfer layer merges neighbours into one copy.
"""

from bisect import bisect_left
from collections.abc import Iterable


class BlockPool:
    """Blocks ``0 .. total - 1`` of one cache."""

    def __init__(self, blocks: int) -> None:
        if blocks < 1:
            raise ValueError(f"blocks={blocks}: a cache needs at least one block")
        self.total = blocks
        self.free_count = blocks
        self._starts = [0]
        self._ends = [blocks]

    def allocate(self, count: int) -> list[int] | None:
        """Take ``count`` blocks, or none at all (None) when fewer are free.

        The lowest run that holds them all is taken from; if there is none, the longest runs go
        first. Each run taken is ascending.
        """
        if count < 0:
            raise ValueError(f"count={count}: cannot allocate a negative number of blocks")
        if count > self.free_count:
            return None
        self.free_count -= count
        for run in range(len(self._starts)):
            if self._ends[run] - self._starts[run] >= count:
                return self._take(run, count)
        taken: list[int] = []
        while len(taken) < count:
            run = self._longest_run()
            taken += self._take(run, min(count - len(taken), self._ends[run] - self._starts[run]))
        return taken

    def free(self, blocks: Iterable[int]) -> None:
        """Give blocks back.

        Raises:
            ValueError: a block is free already or not of this pool; nothing is freed then.
        """
        returned = sorted(blocks)
        for i, block in enumerate(returned):
            if not 0 <= block < self.total:
                raise ValueError(f"block {block} is not of this pool (0 .. {self.total - 1})")
            if self._is_free(block) or (i and returned[i - 1] == block):
                raise ValueError(f"block {block} is freed twice")
        for block in returned:
            self._put_back(block)
        self.free_count += len(returned)

    def _take(self, run: int, count: int) -> list[int]:
        start = self._starts[run]
        self._starts[run] += count
        if self._starts[run] == self._ends[run]:
            del self._starts[run], self._ends[run]
        return list(range(start, start + count))

    def _longest_run(self) -> int:
        return max(range(len(self._starts)), key=lambda run: self._ends[run] - self._starts[run])

    def _is_free(self, block: int) -> bool:
        after = bisect_left(self._starts, block + 1)
        return after > 0 and block < self._ends[after - 1]

    def _put_back(self, block: int) -> None:
        after = bisect_left(self._starts, block)
        joins_before = after > 0 and self._ends[after - 1] == block
        joins_after = after < len(self._starts) and self._starts[after] == block + 1
        if joins_before and joins_after:
            self._ends[after - 1] = self._ends[after]
            del self._starts[after], self._ends[after]
        elif joins_before:
            self._ends[after - 1] = block + 1
        elif joins_after:
            self._starts[after] = block
        else:
            self._starts.insert(after, block)
            self._ends.insert(after, block + 1)
