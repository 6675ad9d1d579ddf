"""Machine-level scheduling: what runs in a machine's next iteration.

Prompts are taken first come, first served, up to a token budget; decodes as far as memory holds
(Splitwise, section IV.C). A mixed machine runs both in one iteration.
"""

from collections.abc import Sequence
from typing import Final

from splitwise.scheduling.shared import shared

PROMPT_BATCH_TOKENS: Final = 2048
"""Prompt throughput falls beyond this many batched tokens (Splitwise, figure 6)."""
BATCH_REQUESTS: Final = 512


@shared
def joins_batch(prompt_tokens: int, left_tokens: int, is_first: bool) -> bool:
    """Whether the queue's next prompt joins the batch as a whole; the batch ends if it does not.

    ``left_tokens`` is what the batch has left of its budget. Nothing overtakes a prompt that is
    too long for that; one that is longer than the whole budget comes first and runs alone.
    """
    return is_first or prompt_tokens <= left_tokens


def count_prompts(
    prompt_tokens: Sequence[int],
    prompt_blocks: Sequence[int],
    free_blocks: int,
    free_slots: int,
    budget_tokens: int = PROMPT_BATCH_TOKENS,
) -> int:
    """How many prompts at the head of the queue make up the next prompt batch.

    The batch ends at the first prompt that passes the budget (``joins_batch``), the free blocks
    or the free slots.
    """
    count = 0
    for i in range(min(len(prompt_tokens), free_slots)):
        free_blocks -= prompt_blocks[i]
        if free_blocks < 0 or not joins_batch(prompt_tokens[i], budget_tokens, count == 0):
            break
        budget_tokens -= prompt_tokens[i]
        count += 1
    return count


def may_reserve(needed_blocks: int, free_blocks: int, running_requests: int) -> bool:
    """Whether a token machine may promise ``needed_blocks`` to a newcomer.

    One block a running request is kept back, so that those who run can grow before another
    comes in; else each newcomer would soon preempt somebody.
    """
    return needed_blocks + running_requests <= free_blocks


def pick_victim(arrivals: Sequence[int]) -> int:
    """Which running request gives its memory up: the one that arrived last.

    ``arrivals`` are arrival numbers, one a running request.
    """
    victim = 0
    for i in range(1, len(arrivals)):
        if arrivals[i] > arrivals[victim]:
            victim = i
    return victim
