"""Who gives its cache up where running tasks need more than there is.

``machine`` asks before an iteration, and preempts those it is told. The policy ranks them.
"""

from collections.abc import Sequence

from splitwise.scheduling import batching
from splitwise.scheduling.decision import RunningRequest
from splitwise.scheduling.enacting import read_rank
from splitwise.transfer.layout import CacheLayout
from splitwise.worker.asking import Asking
from splitwise.worker.task import Task


class Victims:
    """What is decided by the policy of a worker."""

    def __init__(self, asking: Asking, layout: CacheLayout) -> None:
        self._asking = asking
        self._layout = layout

    def for_growth(self, running: Sequence[Task], free_blocks: int) -> list[Task]:
        """Who has to go, in that order, for the others to have room for their next tokens."""
        needed = [self._layout.blocks_for(len(task.history)) for task in running]
        held = [len(task.blocks) for task in running]
        ranks = [self._rank(running, i, needed[i]) for i in range(len(running))]
        going_on = batching.choose_victims(ranks, needed, held, free_blocks)
        return [running[i] for *_, i in reversed(ranks[going_on:])]

    def for_block(self, running: Sequence[Task]) -> Task:
        """Who has to go for a single block to be free."""
        ranks = [self._rank(running, i, len(running[i].blocks)) for i in range(len(running))]
        return running[batching.pick_victim(ranks)]

    def _rank(self, running: Sequence[Task], i: int, needed_blocks: int) -> tuple[int, ...]:
        """How soon a running task gives its blocks up; the last number is its place."""
        task, block_tokens = running[i], self._layout.block_tokens
        request = RunningRequest(
            task.spec.number,
            task.spec.priority,
            len(task.blocks) * block_tokens,
            needed_blocks * block_tokens,
        )
        said = self._asking.ask("victim", read_rank, request.number, request)
        return said, *task.rank, i
