"""A machine's cache where it grows with the output, as a server's must that does not know its end.

1. ``expect``: a request is placed; its token machine is to find blocks for the prompt. A machine
   looks at what came in between two iterations only, as the server's do.
2. ``take_in``: blocks are promised to the prompt machine, first come, first served, as far as
   ``may_reserve`` lets them; and of caches that have arrived the cluster is told.
3. ``grow``: every running request gets the block its next token may need. If there is none, the
   last in rank, the youngest, is preempted and returns to the cluster's line (``choose_victims``).
"""

from typing import Any, Final

from splitwise.scheduling.batching import choose_victims, may_reserve, missing_for_growth
from splitwise.scheduling.cluster_state import rank
from splitwise.scheduling.decision import RunningRequest
from splitwise.simulation.charges import in_blocks, prompt_charge
from splitwise.simulation.compiled import inlined
from splitwise.simulation.links import send
from splitwise.simulation.memory import hold, hold_prompt
from splitwise.simulation.policy_calls import victim_by
from splitwise.simulation.queues import append_expected, pop_expected, unlink_ready
from splitwise.simulation.recall import recall
from splitwise.simulation.roles import settle
from splitwise.simulation.slots import generated_in, leave, slot_of
from splitwise.simulation.state import NONE, Phase

RANKS: Final = 2**31
"""Requests a rank, which is more than a simulation has."""


@inlined
def expect(state: Any, request: int) -> None:
    """The request's token machine is to reserve blocks for its prompt."""
    machine = state.requests[request].token_machine
    append_expected(state, machine, request)
    state.machines[machine].has_freed = True


@inlined
def free_tokens(state: Any, machine: int) -> int:
    """Cache that nobody holds."""
    used = state.machines[machine].memory_tokens
    return int(state.cluster.kv_capacity_tokens[machine] - used)


@inlined
def may_take(state: Any, machine: int, tokens: int) -> bool:
    """Whether a newcomer gets blocks beside those that run and grow."""
    running = state.machines[machine].started
    request = state.machines[machine].ready_head
    while request != NONE:
        running += state.requests[request].phase == Phase.READY
        request = state.requests[request].next
    block = state.rules.block_tokens
    return may_reserve(tokens // block, free_tokens(state, machine) // block, running)


@inlined
def try_begin(state: Any, machine: int, one: Any) -> bool:
    """Take blocks for a prompt on the machine that computes it, or none."""
    tokens = in_blocks(state, one.prompt_tokens)
    if not may_take(state, machine, tokens):
        return False
    hold_prompt(state, one, tokens)
    return True


@inlined
def take_in(state: Any, machine: int, now: float) -> None:
    """Look at what happened during the iteration."""
    here = state.machines[machine]
    if here.has_freed:
        here.has_freed = False
        reserve(state, machine, now)
    request = here.ready_head
    while request != NONE:
        one = state.requests[request]
        if one.phase == Phase.ARRIVED:
            report_arrival(state, one, now)
        request = one.next


@inlined
def report_arrival(state: Any, one: Any, now: float) -> None:
    """The cluster is told that the cache is on its token machine."""
    one.phase = Phase.READY
    state.cluster.kv_tokens[one.prompt_machine] -= prompt_charge(state, one)
    rank(state.cluster, one.prompt_machine)
    settle(state, one.prompt_machine, now)


@inlined
def reserve(state: Any, machine: int, now: float) -> None:
    """Give blocks to those that wait for them, in order."""
    here = state.machines[machine]
    while here.expected_head != NONE:
        request = here.expected_head
        one = state.requests[request]
        tokens = in_blocks(state, one.prompt_tokens)
        if not may_take(state, machine, tokens):
            return
        pop_expected(state, machine)
        hold(state, one, tokens)
        one.transfer_start_s = now  # at the earliest
        if one.phase == Phase.SENDING:
            send(state, request, now, False)


@inlined
def grow(state: Any, machine: int, now: float) -> None:
    """Room for the tokens of the next iteration, preempting as many as it takes; others that wait
    for blocks do not get theirs."""
    count = list_running(state, machine)
    running = state.scratch.running[:count]
    free = free_tokens(state, machine)
    going_on = count
    if missing_for_growth(running.needed_tokens, running.held_tokens, free) > 0:
        rank_running(state, count)
        going_on = choose_victims(running.rank, running.needed_tokens, running.held_tokens, free)
        find_running(state, count)
    for i in range(count - 1, going_on - 1, -1):
        preempt(state, machine, running[i].request, now)
    for i in range(going_on):
        one = state.requests[running[i].request]
        if running[i].needed_tokens > one.held_tokens:
            hold(state, one, running[i].needed_tokens - one.held_tokens)


@inlined
def rank_running(state: Any, count: int) -> None:
    """Write down whose memory goes first: by the policy, of equals the last to come."""
    running = state.scratch.running
    for i in range(count):
        request = running[i].request
        asked = RunningRequest(request + 1, 0, running[i].held_tokens, running[i].needed_tokens)
        running[i].rank = victim_by(state.policy, asked) * RANKS + request


@inlined
def find_running(state: Any, count: int) -> None:
    """Ranks were put in another order; their requests follow."""
    running = state.scratch.running
    for i in range(count):
        running[i].request = running[i].rank % RANKS


@inlined
def list_running(state: Any, machine: int) -> int:
    """Write down who runs on the machine, has a slot or is ready for one, and what cache each
    needs; returns how many do."""
    here = state.machines[machine]
    running = state.scratch.running
    for slot in range(here.started):
        running[slot].request = state.slots[machine, slot].request
        running[slot].needed_tokens = generated_in(state, machine, slot)
    count = here.started
    request = here.ready_head
    while request != NONE:
        running[count].request = request
        running[count].needed_tokens = 1
        count += 1
        request = state.requests[request].next
    for i in range(count):
        one = state.requests[running[i].request]
        running[i].needed_tokens = in_blocks(state, one.prompt_tokens + running[i].needed_tokens)
        running[i].held_tokens = one.held_tokens
    return int(count)


@inlined
def preempt(state: Any, machine: int, request: int, now: float) -> None:
    """The request gives its blocks up, and its slot if it has one."""
    slot = slot_of(state, machine, request)
    generated = 1
    if slot == NONE:
        unlink_ready(state, machine, request)
    else:
        generated = leave(state, machine, slot)
    recall(state, request, generated, now)


@inlined
def iterations_before_growth(state: Any, machine: int) -> int:
    """How many iterations the active slots run before one of them is charged, or needs, a block
    more."""
    here = state.machines[machine]
    block = state.rules.block_tokens
    iterations = block
    for slot in range(here.active):
        one = state.requests[state.slots[machine, slot].request]
        last = (one.prompt_tokens + generated_in(state, machine, slot)) % block
        iterations = min(iterations, block - last if last > 0 else 1)
    return int(iterations)
