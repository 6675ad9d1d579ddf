"""Machine-level scheduling: what runs in a machine's next iteration.

Prompts are taken first come, first served, up to a token budget; decodes as far as memory holds
(Splitwise, section IV.C). A mixed machine runs both in one iteration: prompts first, and decodes
in the places that are left. Those that are left out, preempted, keep their cache and age; after
``MAX_PREEMPTIONS`` iterations in a row they go before prompts.

Before each iteration, on a server and in a simulator whose caches grow as there:

1. Newcomers get blocks, in order (``count_with_room``).
2. Those that run get what their next token needs; if there is too little, some give theirs up
   (``choose_victims``, by ``pick_victim``).
3. If prompts wait, the decodes are put in order (``order_running``), and the batch is composed
   (``compose``): prompts first, but for aged decodes. A policy may have fewer go in
   (``prompts_to_start``). It ends earlier where blocks do.
4. Decodes take the places that are left (``decode_places``).
"""

from collections.abc import MutableSequence, Sequence
from typing import Final, TypeVar

from splitwise.scheduling.shared import shared

PROMPT_BATCH_TOKENS: Final = 2048
"""Prompt throughput falls beyond this many batched tokens (Splitwise, figure 6)."""
BATCH_REQUESTS: Final = 512
MAX_PREEMPTIONS: Final = 4
MAX_PROMPT_SKIPS: Final = 64
"""Iterations in a row that a policy may keep prompts out of: some 3 s of 50 ms each."""
UNBOUNDED_DECODES: Final = 2**31 - 1
"""Of a machine that never leaves a decode out."""

Rank = TypeVar("Rank", int, tuple[int, ...])
"""Whose memory is taken last: the lower."""


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


def max_decodes(batch_requests: int, batch_tokens: int) -> int:
    """How many decodes run where no prompt does: were there more, the last would stand still until
    one of the first ends."""
    return min(decode_places(0, 0, batch_requests, batch_tokens), UNBOUNDED_DECODES)


@shared
def compose(
    prompt_tokens: Sequence[int],
    aged: int,
    batch_requests: int,
    batch_tokens: int,
    may_cut: bool,
) -> tuple[int, int]:
    """How many prompts at the head of a machine's queue make up its next batch as a whole, and how
    many tokens of the one after them join as well, where prompts may be cut.

    ``prompt_tokens`` is what each has still to compute, at least as far as the batch may reach.
    ``aged`` decodes have taken their places. Where prompts may be cut all decodes go first, and the
    last prompt is cut to what is left of the budget.
    """
    left_tokens = batch_tokens - aged
    places = min(len(prompt_tokens), max(batch_requests - aged, 0))
    for i in range(places):
        is_first = i == 0 and aged == 0 and not may_cut
        if not joins_batch(prompt_tokens[i], left_tokens, is_first):
            return i, max(left_tokens, 0) if may_cut else 0
        left_tokens -= prompt_tokens[i]
    return places, 0


@shared
def prompts_to_start(said: int, decodes: int, skips: int) -> int:
    """How many prompts go into a batch that has a place for one at least, where a policy ``said``
    so many.

    One goes in whatever it said where no decode runs, for nothing would happen then that it could
    wait for; and after ``skips`` iterations in a row without any, so that none waits for ever.
    """
    if decodes == 0 or skips >= MAX_PROMPT_SKIPS:
        return max(said, 1)
    return said


@shared
def order_running(skips: Sequence[int], max_preemptions: int, order: MutableSequence[int]) -> int:
    """Who of a machine's decodes has a place first, as prompts are about to take some.

    ``skips`` is how many iterations in a row each went without, in their order until now. Writes
    the new order: first those preempted up to the cap, who go before prompts, then others that were
    preempted, then those that ran. Returns how many go before prompts.
    """
    count = 0
    for i in range(len(skips)):
        if is_aged(skips[i], max_preemptions):
            order[count] = i
            count += 1
    aged = count
    for i in range(len(skips)):
        if skips[i] > 0 and not is_aged(skips[i], max_preemptions):
            order[count] = i
            count += 1
    for i in range(len(skips)):
        if skips[i] == 0:
            order[count] = i
            count += 1
    return aged


@shared
def count_with_room(needed_blocks: Sequence[int], free_blocks: int, running_requests: int) -> int:
    """How many of those that wait for blocks get them, in order, one who does not holding up all
    behind it (``may_reserve``)."""
    for i in range(len(needed_blocks)):
        if not may_reserve(needed_blocks[i], free_blocks, running_requests):
            return i
        free_blocks -= needed_blocks[i]
    return len(needed_blocks)


@shared
def may_reserve(needed_blocks: int, free_blocks: int, running_requests: int) -> bool:
    """Whether a token machine may promise ``needed_blocks`` to a newcomer.

    One block a running request is kept back, so that those who run can grow before another
    comes in; else each newcomer would soon preempt somebody.
    """
    return needed_blocks + running_requests <= free_blocks


@shared
def pick_victim(ranks: Sequence[Rank]) -> int:
    """Which running request gives its memory up: the one of the highest rank.

    A rank begins with the priority, then comes the request's age in the cluster, not on this
    machine: one that was preempted and comes back is not the first to go again.
    """
    victim = 0
    for i in range(1, len(ranks)):
        if ranks[i] > ranks[victim]:
            victim = i
    return victim


@shared
def missing_for_growth(needed: Sequence[int], held: Sequence[int], free: int) -> int:
    """What those that run need beyond what they hold and what nobody does; more than 0: somebody
    has to give its memory up."""
    missing = -free
    for i in range(len(needed)):
        missing += max(needed[i] - held[i], 0)
    return missing


@shared
def choose_victims(
    ranks: MutableSequence[Rank],
    needed: MutableSequence[int],
    held: MutableSequence[int],
    free: int,
) -> int:
    """Who of those that run gives its memory up so that all others can grow.

    Each holds ``held`` and needs ``needed`` for its next token; ``free`` is what nobody holds.
    Returns how many go on: they stand first then, in all three, and the victims behind them, the
    first victim last.
    """
    count = len(ranks)
    missing = missing_for_growth(needed, held, free)
    while missing > 0:
        victim = pick_victim(ranks[:count])
        missing -= max(needed[victim], held[victim])
        count -= 1
        ranks[victim], ranks[count] = ranks[count], ranks[victim]
        needed[victim], needed[count] = needed[count], needed[victim]
        held[victim], held[count] = held[count], held[victim]
    return count
