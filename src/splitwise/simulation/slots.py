"""A machine's decodes: who sits in which slot, who must wait while prompts run, who is done."""

from typing import Any

import numpy as np

from splitwise.scheduling.batching import order_running
from splitwise.simulation.charges import count_decode, token_charge
from splitwise.simulation.compiled import inlined
from splitwise.simulation.memory import leave_token_machine
from splitwise.simulation.state import NONE, Phase


@inlined
def join(state: Any, machine: int, request: int) -> None:
    """Give the request the machine's next free slot."""
    here = state.machines[machine]
    one = state.requests[request]
    seat = state.slots[machine, here.started]
    seat.request = request
    seat.skips = 0
    seat.finish = here.iteration + one.output_tokens - 1
    seat.last_s = one.last_token_s
    seat.gap_s = one.max_tbt_s
    here.context_tokens += one.prompt_tokens + 1
    here.next_finish = min(here.next_finish, seat.finish) if here.started > 0 else seat.finish
    here.started += 1


@inlined
def seated_context(state: Any, machine: int) -> int:
    """Tokens of cache that the seated decodes read."""
    here = state.machines[machine]
    context = here.context_tokens
    for slot in range(here.active, here.started):
        seat = state.slots[machine, slot]
        one = state.requests[seat.request]
        left = seat.finish - here.iteration
        context -= one.prompt_tokens + one.output_tokens - left
    return int(context)


@inlined
def generated_in(state: Any, machine: int, slot: int) -> int:
    """Tokens that the request in ``slot`` has made in this attempt."""
    seat = state.slots[machine, slot]
    left = seat.finish - state.machines[machine].iteration
    return int(state.requests[seat.request].output_tokens - left)


@inlined
def slot_of(state: Any, machine: int, request: int) -> int:
    """The request's slot on the machine; NONE if it has none."""
    for slot in range(state.machines[machine].started):
        if state.slots[machine, slot].request == request:
            return slot
    return NONE


@inlined
def leave(state: Any, machine: int, slot: int) -> int:
    """The request in ``slot`` gives it up, unfinished; returns ``generated_in`` of it."""
    here = state.machines[machine]
    slots = state.slots[machine]
    one = state.requests[slots[slot].request]
    generated = generated_in(state, machine, slot)
    one.last_token_s = slots[slot].last_s
    one.max_tbt_s = slots[slot].gap_s
    here.context_tokens -= one.prompt_tokens + generated
    here.next_finish = np.int64(2**62)
    here.active -= slot < here.active
    here.started -= 1
    for i in range(slot, here.started):
        slots[i] = slots[i + 1]
    for i in range(here.started):
        here.next_finish = min(here.next_finish, slots[i].finish)
    return generated


@inlined
def charge_growth(state: Any, machine: int) -> None:
    """Charge what the active slots' caches have grown by in the segment that ends."""
    if not state.rules.cache_grows:
        return  # all was charged as they were placed
    here = state.machines[machine]
    kv_tokens = state.cluster.kv_tokens
    for slot in range(here.active):
        one = state.requests[state.slots[machine, slot].request]
        generated = generated_in(state, machine, slot)
        kv_tokens[machine] -= token_charge(state, one, generated)
        kv_tokens[machine] += token_charge(state, one, generated + here.iterations)


@inlined
def age_and_order(state: Any, machine: int) -> int:
    """Order the slots as prompts are about to take their places; return how many are aged."""
    here = state.machines[machine]
    started = here.started
    if here.active == started:  # nobody was preempted, so nobody is aged
        return 0
    slots = state.slots[machine]
    before, order = state.scratch.slots, state.scratch.order
    for slot in range(started):
        before[slot] = slots[slot]
    aged = order_running(before[:started].skips, state.rules.max_preemptions, order)
    for slot in range(started):
        slots[slot] = before[order[slot]]
    return int(aged)


@inlined
def drop_finished(state: Any, machine: int, now: float) -> None:
    """Count the segment's tokens; who has the last one leaves and frees its cache."""
    here = state.machines[machine]
    last_gap_s = here.first_s + here.growth_s * (here.iterations - 1)
    first_end_s = here.start_s + here.first_s
    charge_growth(state, machine)
    here.iteration += here.iterations
    here.context_tokens += here.active * here.iterations
    slots = state.slots[machine]
    for slot in range(here.active):
        seat = slots[slot]
        seat.skips = 0
        seat.gap_s = max(seat.gap_s, last_gap_s, first_end_s - seat.last_s)
        seat.last_s = now
    for slot in range(here.active, here.started):
        slots[slot].finish += here.iterations
    if here.next_finish > here.iteration and here.active == here.started:
        return  # nobody is done
    kept = 0
    next_finish = np.int64(2**62)
    active = here.active
    for slot in range(here.started):
        if slots[slot].finish == here.iteration:
            finish(state, machine, slot, now)
            active -= 1
            continue
        next_finish = min(next_finish, slots[slot].finish)
        if kept < slot:
            slots[kept] = slots[slot]
        kept += 1
    here.started = kept
    here.active = active
    here.next_finish = next_finish


@inlined
def finish(state: Any, machine: int, slot: int, now: float) -> None:
    """The request in ``slot`` has its last token."""
    here = state.machines[machine]
    seat = state.slots[machine, slot]
    one = state.requests[seat.request]
    one.phase = Phase.DONE
    one.finish_s = now
    one.max_tbt_s = seat.gap_s
    tokens = one.prompt_tokens + one.output_tokens
    here.context_tokens -= tokens
    state.cluster.pending_tokens[machine] -= 1
    leave_token_machine(state, one)
    state.cluster.kv_tokens[machine] -= token_charge(state, one, one.output_tokens)
    count_decode(state, one, -1)
