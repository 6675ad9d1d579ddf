"""Machine-level scheduling: what runs in a machine's next iteration.

Prompts are taken first come, first served, up to a token budget; decodes as far as memory holds
(Splitwise, section IV.C). A mixed machine runs both in one iteration: prompts first, and decodes
in the places that are left. Those that are left out, preempted, keep their cache and age; after
``MAX_PREEMPTIONS`` iterations in a row they go before prompts.
"""

from collections.abc import Sequence
from typing import Final

from splitwise.scheduling.shared import shared

PROMPT_BATCH_TOKENS: Final = 2048
"""Prompt throughput falls beyond this many batched tokens (Splitwise, figure 6)."""
BATCH_REQUESTS: Final = 512
MAX_PREEMPTIONS: Final = 4


@shared
def joins_batch(prompt_tokens: int, left_tokens: int, is_first: bool) -> bool:
    """Whether the queue's next prompt joins the batch as a whole; the batch ends if it does not.

    ``left_tokens`` is what the batch has left of its budget. Nothing overtakes a prompt that is
    too long for that; one that is longer than the whole budget comes first and runs alone.
    """
    return is_first or prompt_tokens <= left_tokens


@shared
def is_aged(skips: int, max_preemptions: int) -> bool:
    """Whether a decode that ``skips`` iterations in a row went without goes before prompts.

    With ``max_preemptions`` 0 none ever does.
    """
    return 0 < max_preemptions <= skips


@shared
def decode_places(prompts: int, prompt_tokens: int, batch_requests: int, batch_tokens: int) -> int:
    """How many decodes run beside ``prompts`` that have ``prompt_tokens`` in all."""
    return min(batch_requests - prompts, max(batch_tokens - prompt_tokens, 0))


def count_prompts(
    prompt_tokens: Sequence[int],
    prompt_blocks: Sequence[int],
    free_blocks: int,
    aged: int = 0,
    batch_requests: int = BATCH_REQUESTS,
    batch_tokens: int = PROMPT_BATCH_TOKENS,
) -> int:
    """How many prompts at the head of the queue make up the next prompt batch.

    The batch ends at the first prompt that passes the budget (``joins_batch``), the free blocks
    or the places in the batch. ``aged`` decodes have taken theirs.
    """
    count = 0
    left_tokens = batch_tokens - aged
    for i in range(min(len(prompt_tokens), batch_requests - aged)):
        free_blocks -= prompt_blocks[i]
        is_first = count == 0 and aged == 0
        if free_blocks < 0 or not joins_batch(prompt_tokens[i], left_tokens, is_first):
            break
        left_tokens -= prompt_tokens[i]
        count += 1
    return count


@shared
def may_reserve(needed_blocks: int, free_blocks: int, running_requests: int) -> bool:
    """Whether a token machine may promise ``needed_blocks`` to a newcomer.

    One block a running request is kept back, so that those who run can grow before another
    comes in; else each newcomer would soon preempt somebody.
    """
    return needed_blocks + running_requests <= free_blocks


@shared
def pick_victim(ranks: Sequence[tuple[int, ...]]) -> int:
    """Which running request gives its memory up: the one of the highest rank.

    A rank begins with the priority, then comes the request's age in the cluster, not on this
    machine: one that was preempted and comes back is not the first to go again.
    """
    victim = 0
    for i in range(1, len(ranks)):
        if ranks[i] > ranks[victim]:
            victim = i
    return victim
