from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from splitwise.engine.blocks import BlockPool

TOTAL = 24


def runs(blocks: list[int]) -> int:
    return 1 + sum(b != a + 1 for a, b in pairwise(blocks))


class PoolAgainstASet(RuleBasedStateMachine):
    """The pool must behave as a plain set of free blocks does."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(TOTAL)
        self.free = set(range(TOTAL))
        self.held: list[list[int]] = []

    @rule(count=st.integers(0, TOTAL + 2))
    def allocate(self, count: int) -> None:
        blocks = self.pool.allocate(count)
        if count > len(self.free):
            assert blocks is None
            return
        assert blocks is not None
        assert len(set(blocks)) == len(blocks) == count
        assert set(blocks) <= self.free
        longest = max((n for n in range(TOTAL, 0, -1) if self._has_run(n)), default=0)
        if 0 < count <= longest:
            assert runs(blocks) == 1, "a single run was free"
        self.free -= set(blocks)
        self.held.append(blocks)

    def _has_run(self, length: int) -> bool:
        return any(set(range(s, s + length)) <= self.free for s in range(TOTAL - length + 1))

    @rule(data=st.data())
    def free_some(self, data: st.DataObject) -> None:
        if not self.held:
            return
        blocks = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        part = data.draw(st.integers(0, len(blocks)))
        blocks = data.draw(st.permutations(blocks))
        self.pool.free(blocks[:part])
        self.free |= set(blocks[:part])
        if blocks[part:]:
            self.held.append(blocks[part:])

    @rule(block=st.integers(-2, TOTAL + 1))
    def double_free_is_refused(self, block: int) -> None:
        if block in self.free or not 0 <= block < TOTAL:
            with pytest.raises(ValueError, match=str(block)):
                self.pool.free([block])

    @invariant()
    def counts_agree(self) -> None:
        assert self.pool.free_count == len(self.free)
        assert self.pool.total == TOTAL


TestPoolAgainstASet = PoolAgainstASet.TestCase
TestPoolAgainstASet.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.integers(0, TOTAL - 1), min_size=1))
def test_everything_or_nothing_is_freed(blocks: list[int]) -> None:
    pool = BlockPool(TOTAL)
    pool.allocate(TOTAL)
    if len(set(blocks)) == len(blocks):
        pool.free(blocks)
        assert pool.free_count == len(blocks)
    else:
        with pytest.raises(ValueError, match="freed twice"):
            pool.free(blocks)
        assert pool.free_count == 0


def test_fragments_are_used_longest_first() -> None:
    pool = BlockPool(10)
    pool.allocate(10)
    pool.free([0, 3, 4, 5, 8, 9])
    assert pool.allocate(5) == [3, 4, 5, 8, 9]
    assert pool.allocate(2) is None
    assert pool.allocate(1) == [0]


def test_a_pool_needs_blocks() -> None:
    with pytest.raises(ValueError, match="blocks=0"):
        BlockPool(0)
    with pytest.raises(ValueError, match="count=-1"):
        BlockPool(1).allocate(-1)
