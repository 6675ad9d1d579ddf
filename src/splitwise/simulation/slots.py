"""A machine's decodes: who sits in which slot, who must wait while prompts run, who is done."""

from typing import Any

import numpy as np

from splitwise.simulation.compiled import inlined
from splitwise.simulation.state import Phase


@inlined
def join(state: Any, machine: int, request: int) -> None:
    """Give the request the machine's next free slot."""
    here = state.machines[machine]
    one = state.requests[request]
    slot = here.started
    here.started += 1
    finish = here.iteration + one.output_tokens - 1
    state.slot_request[machine, slot] = request
    state.slot_finish[machine, slot] = finish
    state.slot_last_s[machine, slot] = one.last_token_s
    state.slot_gap_s[machine, slot] = one.max_tbt_s
    here.context_tokens += one.prompt_tokens + 1
    here.next_finish = min(here.next_finish, finish) if slot > 0 else finish


@inlined
def seated_context(state: Any, machine: int) -> int:
    """Tokens of cache that the seated decodes read."""
    here = state.machines[machine]
    context = here.context_tokens
    for slot in range(here.active, here.started):
        one = state.requests[state.slot_request[machine, slot]]
        left = state.slot_finish[machine, slot] - here.iteration
        context -= one.prompt_tokens + one.output_tokens - left
    return int(context)


@inlined
def age_and_order(state: Any, machine: int) -> int:
    """Order the slots as prompts are about to take their places; return how many are aged.

    First those preempted up to the cap, who go before prompts, then others that were preempted,
    then those that ran.
    """
    here = state.machines[machine]
    cap = state.rules.max_preemptions
    started = here.started
    if started == 0 or (here.active == started and cap <= 0):
        return 0
    order = state.order
    aged = 0
    if cap > 0:
        for slot in range(started):
            if state.requests[state.slot_request[machine, slot]].skips >= cap:
                order[aged] = slot
                aged += 1
    if here.active == started and aged == 0:
        return 0
    count = aged
    for i in range(started):
        slot = (here.active + i) % started
        is_aged = cap > 0 and state.requests[state.slot_request[machine, slot]].skips >= cap
        if not is_aged:
            order[count] = slot
            count += 1
    reorder(state, machine, order[:started])
    return aged


@inlined
def reorder(state: Any, machine: int, order: Any) -> None:
    """Lay the slots out anew; ``order`` holds the old slot of each new one."""
    permute(state.slot_request[machine], order, state.scratch)
    permute(state.slot_finish[machine], order, state.scratch)
    permute(state.slot_last_s[machine], order, state.scratch)
    permute(state.slot_gap_s[machine], order, state.scratch)


@inlined
def permute(row: Any, order: Any, scratch: Any) -> None:
    """Bring the first entries of ``row`` into the given order."""
    for i in range(len(order)):
        scratch[i] = row[order[i]]
    for i in range(len(order)):
        row[i] = scratch[i]


@inlined
def drop_finished(state: Any, machine: int, now: float) -> None:
    """Count the segment's tokens; who has the last one leaves and frees its cache."""
    here = state.machines[machine]
    last_gap_s = here.first_s + here.growth_s * (here.iterations - 1)
    first_end_s = here.start_s + here.first_s
    here.iteration += here.iterations
    here.context_tokens += here.active * here.iterations
    gaps = state.slot_gap_s[machine]
    lasts = state.slot_last_s[machine]
    finishes = state.slot_finish[machine]
    for slot in range(here.active):
        if lasts[slot] < here.start_s:
            state.requests[state.slot_request[machine, slot]].skips = 0
        gaps[slot] = max(gaps[slot], last_gap_s, first_end_s - lasts[slot])
        lasts[slot] = now
    for slot in range(here.active, here.started):
        finishes[slot] += here.iterations
    kept = 0
    next_finish = np.int64(2**62)
    active = here.active
    for slot in range(here.started):
        if finishes[slot] == here.iteration:
            finish(state, machine, slot, now)
            active -= 1
            continue
        next_finish = min(next_finish, finishes[slot])
        if kept < slot:
            state.slot_request[machine, kept] = state.slot_request[machine, slot]
            finishes[kept] = finishes[slot]
            lasts[kept] = lasts[slot]
            gaps[kept] = gaps[slot]
        kept += 1
    here.started = kept
    here.active = active
    here.next_finish = next_finish


@inlined
def finish(state: Any, machine: int, slot: int, now: float) -> None:
    """The request in ``slot`` has its last token."""
    here = state.machines[machine]
    one = state.requests[state.slot_request[machine, slot]]
    tokens = one.prompt_tokens + one.output_tokens
    one.phase = Phase.DONE
    one.finish_s = now
    one.max_tbt_s = state.slot_gap_s[machine, slot]
    here.context_tokens -= tokens
    here.memory_tokens -= tokens
    state.cluster.pending_tokens[machine] -= 1
    state.cluster.kv_tokens[machine] -= tokens
