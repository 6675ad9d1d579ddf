"""A machine's prompts: which of its queue go into an iteration, and what becomes of them after it.

1. ``take_prompts``: as an iteration begins, prompts at the queue's head go into it, as the limits
   let them (``batching.compose``) or a policy has it, as far as there is room in the cache.
2. ``first_token``: it is over, and so is each of its prompts: the first token is out, the request
   ends or its cache leaves for its token machine, or stays.
"""

from typing import Any

import numpy as np

from splitwise.scheduling.batching import compose, prompts_to_start
from splitwise.scheduling.cluster_state import rank
from splitwise.scheduling.decision import NextBatch
from splitwise.simulation.charges import token_charge
from splitwise.simulation.compiled import inlined
from splitwise.simulation.grown import free_tokens, try_begin
from splitwise.simulation.links import send
from splitwise.simulation.memory import leave_token_machine, try_reserve
from splitwise.simulation.policy_calls import compose_by
from splitwise.simulation.queues import append_ready
from splitwise.simulation.slots import age_and_order
from splitwise.simulation.state import NONE, Phase


@inlined
def take_prompts(state: Any, machine: int, now: float) -> int:
    """Move prompts from the queue's head into the batch, as ``scheduling.batching`` has it.

    Returns how many aged decodes go before them.
    """
    here = state.machines[machine]
    rules = state.rules
    here.batch_head = NONE
    here.batch_prompts = 0
    here.batch_tokens = 0
    here.chunk_tokens = 0
    if here.queue_head == NONE:
        return 0
    aged = here.started if rules.chunk_prompts else age_and_order(state, machine)
    whole, chunk_tokens = choose_prompts(state, machine, aged, now)
    last = NONE
    for i in range(whole):
        request = here.queue_head
        if not begin_prompt(state, machine, request, now):
            return int(aged)
        here.batch_tokens += state.scratch.lengths[i]
        here.batch_prompts += 1
        stop_waiting(state, machine)
        here.queue_head = state.requests[request].next
        state.requests[request].next = NONE
        if last == NONE:
            here.batch_head = request
        else:
            state.requests[last].next = request
        last = request
    if chunk_tokens > 0 and begin_prompt(state, machine, here.queue_head, now):
        here.chunk_tokens = chunk_tokens
        here.batch_tokens += chunk_tokens
    return int(aged)


@inlined
def choose_prompts(state: Any, machine: int, aged: int, now: float) -> tuple[int, int]:
    """How many prompts at the queue's head make up the batch as a whole, and how many tokens of the
    next one join; ``aged`` decodes go before them."""
    rules = state.rules
    waiting = list_prompts(state, machine, rules.batch_requests - aged)
    lengths = state.scratch.lengths
    whole, chunk_tokens = compose(
        lengths[:waiting], aged, rules.batch_requests, rules.batch_tokens, rules.chunk_prompts
    )
    if not rules.policy_composes:
        return whole, chunk_tokens
    prompts = whole
    if chunk_tokens > 0:
        lengths[whole] = chunk_tokens
        prompts += 1
    count = 0
    if prompts > 0:
        count = count_by_policy(state, machine, lengths[:prompts], now)
    if count < prompts:
        return count, 0
    return whole, chunk_tokens


@inlined
def count_by_policy(state: Any, machine: int, prompt_tokens: Any, now: float) -> int:
    """How many of the first prompts the policy has go in."""
    here = state.machines[machine]
    decodes = count_decodes(state, machine)
    decode_skips = 0
    for slot in range(here.started):
        decode_skips = max(decode_skips, state.slots[machine, slot].skips)
    batch = NextBatch(
        here.queue_head + 1,
        0,
        now - state.requests[here.queue_head].queued_s,
        here.prompt_skips,
        decodes,
        decode_skips,
        max(free_for_prompts(state, machine, decodes), 0),
        state.rules.batch_requests,
        state.rules.batch_tokens,
    )
    said = compose_by(state.policy, batch, prompt_tokens)
    return prompts_to_start(said, decodes, here.prompt_skips)


@inlined
def count_decodes(state: Any, machine: int) -> int:
    """Those that have a slot, and those ready for one; where room is taken late the latter may have
    none for long."""
    here = state.machines[machine]
    count = here.started
    request = here.ready_head if state.rules.retry_s == 0 else NONE
    while request != NONE:
        count += 1
        request = state.requests[request].next
    return int(count)


@inlined
def free_for_prompts(state: Any, machine: int, decodes: int) -> int:
    """Cache that prompts may take: where it grows a block is kept back for each decode."""
    free = free_tokens(state, machine)
    if state.rules.cache_grows:
        free -= decodes * state.rules.block_tokens
    return free


@inlined
def note_skip(state: Any, machine: int) -> None:
    """An iteration begins; if prompts wait and none is in it, they are left out once more."""
    here = state.machines[machine]
    is_left_out = here.queue_head != NONE and here.batch_tokens == 0
    here.prompt_skips = here.prompt_skips + 1 if is_left_out else 0


@inlined
def list_prompts(state: Any, machine: int, places: int) -> int:
    """Write down what the first prompts of the queue have still to compute, as far as a batch may
    reach; returns how many these are."""
    lengths = state.scratch.lengths
    request = state.machines[machine].queue_head
    count, tokens = 0, 0
    while request != NONE and count < places and tokens <= state.rules.batch_tokens:
        one = state.requests[request]
        lengths[count] = one.prompt_tokens - one.done_tokens
        tokens += lengths[count]
        count += 1
        request = one.next
    return int(count)


@inlined
def begin_prompt(state: Any, machine: int, request: int, now: float) -> bool:
    """The prompt goes on, or its first iteration starts, if there is room for it."""
    one = state.requests[request]
    if one.phase != Phase.QUEUED:
        return True
    if not take_room(state, machine, one):
        return False
    one.phase = Phase.PROMPT
    one.attempt_start_s = now
    if np.isnan(one.prompt_start_s):
        one.prompt_start_s = now
    return True


@inlined
def take_room(state: Any, machine: int, one: Any) -> bool:
    """Take room for a prompt that is about to start, if there is enough."""
    if state.rules.cache_grows:
        return try_begin(state, machine, one)
    return try_reserve(state, machine, one)


@inlined
def stop_waiting(state: Any, machine: int) -> None:
    """A prompt waits no more. A server's cluster scheduler is yet to be told (``serve_line``)."""
    if state.rules.cache_grows:
        state.machines[machine].starting += 1
        state.progress[0].starting += 1
    else:
        state.cluster.waiting[machine] -= 1


@inlined
def first_token(state: Any, request: int, now: float) -> None:
    """A prompt is computed: its first token is out, and its cache leaves or stays."""
    one = state.requests[request]
    machine = one.prompt_machine
    cluster = state.cluster
    if np.isnan(one.first_token_s):
        one.first_token_s = now
    else:  # taken up again after a failure: a gap that the client saw
        one.max_tbt_s = max(one.max_tbt_s, now - one.last_token_s)
    one.last_token_s = now
    cluster.pending_tokens[machine] -= one.prompt_tokens
    state.machines[machine].tokens_out += 1
    if one.output_tokens == 1:
        one.phase = Phase.DONE
        one.finish_s = now
        leave_token_machine(state, one)
        cluster.pending_tokens[machine] -= 1
        cluster.kv_tokens[machine] -= token_charge(state, one, 0)
        return
    charge_first(state, one)
    if one.token_machine == machine:
        append_ready(state, machine, request)
    else:
        one.phase = Phase.SENDING
        if one.is_expected:
            return  # ``grown.reserve`` sends it
        early = state.rules.overlap and one.prompt_tokens >= state.rules.overlap_from_tokens
        send(state, request, now, early)


@inlined
def charge_first(state: Any, one: Any) -> None:
    """Charge what the first token makes the cache grow by."""
    kv_tokens = state.cluster.kv_tokens
    kv_tokens[one.token_machine] += token_charge(state, one, 1) - token_charge(state, one, 0)
    rank(state.cluster, one.token_machine)
