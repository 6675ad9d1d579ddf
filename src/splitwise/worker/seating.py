"""Who has a place in a machine's next iteration (the rules: ``batching``, ``isolation``).

1. ``order``, as prompts are about to take places: the running who were left out long enough stand
   first, and keep theirs.
2. ``company`` and ``count_prompts`` say how many of the prompts that wait come in. A policy that
   decides this itself is asked (``composing``).
3. ``decodes`` seats the running beside them, and counts how long the others have been left out.
"""

from collections.abc import Sequence
from itertools import islice

from splitwise.scheduling import batching, isolation
from splitwise.worker.composing import Composing
from splitwise.worker.task import Task, alike


class Seating:
    """Composes iterations of ``batch_requests`` requests at most, whose prompts have
    ``prompt_batch_tokens`` tokens together."""

    def __init__(
        self,
        batch_requests: int,
        prompt_batch_tokens: int,
        max_preemptions: int,
        composing: Composing | None = None,
    ) -> None:
        """``composing`` is None where the policy has prompts go in as the limits let them."""
        self._composing = composing
        self._batch_requests = batch_requests
        self._prompt_batch_tokens = prompt_batch_tokens
        self._max_preemptions = max_preemptions

    def order(self, running: list[Task]) -> tuple[list[Task], int]:
        """The running tasks in the order of their claims, and how many of them are aged.
        Newcomers, who were not preempted, stand last."""
        skips = [task.skips for task in running]
        if not any(skips):
            return running, 0
        order = [0] * len(skips)
        aged = batching.order_running(skips, self._max_preemptions, order)
        return [running[i] for i in order], aged

    def company(self, waiting: Sequence[Task], aged: int) -> list[Task]:
        """The prompts at the head of the queue that may share an iteration, with so many aged, and
        for each of them whether it is ``alike`` one before it."""
        if aged and waiting[0].spec.alone:
            return []
        head = list(islice(waiting, self._batch_requests))
        head = head[: isolation.count_company([task.spec.alone for task in head])]
        for task, like in zip(head, alike(head), strict=True):
            task.like = like
        return head

    def count_prompts(
        self,
        head: Sequence[Task],
        running: Sequence[Task],
        needed_blocks: list[int],
        free_blocks: int,
        aged: int,
    ) -> int:
        """How many of the prompts at the head come in, in the blocks that are to be had."""
        tokens = [task.computed_tokens for task in head]
        count, _ = batching.compose(
            tokens, aged, self._batch_requests, self._prompt_batch_tokens, may_cut=False
        )
        if count and self._composing is not None:
            count = self._composing.count(head[0], tokens[:count], running, free_blocks)
        return batching.count_with_room(needed_blocks[:count], free_blocks, running_requests=0)

    def began(self, are_left_out: bool) -> None:
        """An iteration begins; ``are_left_out``: it has no prompts, though some wait."""
        if self._composing is not None:
            self._composing.began(are_left_out)

    def decodes(self, running: Sequence[Task], prompts: Sequence[Task]) -> list[Task]:
        """The running tasks that have a place beside ``prompts``; the others among them that had
        one before are preempted for this iteration."""
        places = batching.decode_places(
            len(prompts),
            sum(task.computed_tokens for task in prompts),
            self._batch_requests,
            self._prompt_batch_tokens,
        )
        if prompts and prompts[0].spec.alone:
            places = 0
        seated = list(running[:places])
        for task in seated:
            task.has_place, task.skips = True, 0
        for task in running[places:]:
            task.skips += task.has_place
        return seated
