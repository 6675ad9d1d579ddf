"""A policy's word on which prompts go into a machine's next iteration.

1. ``seating`` asks (``count``) once it knows how many the limits let in.
2. As an iteration begins it says whether prompts were left out (``began``): how often in a row is
   part of what the policy is told, and bounds how long it may go on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from splitwise.scheduling.batching import prompts_to_start
from splitwise.scheduling.decision import NextBatch
from splitwise.scheduling.enacting import read_count
from splitwise.worker.asking import Asking
from splitwise.worker.task import Task


@dataclass(eq=False)
class Composing:
    """Of one machine, whose iterations have ``batch_requests`` requests and ``batch_tokens`` tokens
    at most; ``clock`` is the one that tasks came by."""

    asking: Asking
    batch_requests: int
    batch_tokens: int
    block_tokens: int
    clock: Callable[[], float]
    skips: int = 0
    """Iterations in a row without prompts, though some waited."""

    def count(
        self,
        first: Task,
        prompt_tokens: Sequence[int],
        running: Sequence[Task],
        free_blocks: int,
    ) -> int:
        """How many prompts go in of those, at least one, that the limits let in, ``first`` the
        first of them."""
        batch = NextBatch(
            number=first.spec.number,
            priority=first.spec.priority,
            waited_s=self.clock() - first.came_s,
            skips=self.skips,
            decodes=len(running),
            decode_skips=max((task.skips for task in running), default=0),
            free_tokens=max(free_blocks, 0) * self.block_tokens,
            batch_requests=self.batch_requests,
            batch_tokens=self.batch_tokens,
        )
        tokens = np.array(prompt_tokens, np.int64)
        tokens.flags.writeable = False
        read = partial(read_count, prompts=len(tokens))
        said = self.asking.ask("compose", read, batch.number, batch, tokens)
        return prompts_to_start(said, batch.decodes, self.skips)

    def began(self, are_left_out: bool) -> None:
        """An iteration begins; ``are_left_out``: it has no prompts, though some wait."""
        self.skips = self.skips + 1 if are_left_out else 0
