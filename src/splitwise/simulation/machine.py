"""Machine-level scheduling in virtual time: what an iteration holds, how long it takes.

The life of a machine:

1. ``kick``: something came into a queue. An idle machine starts; decodes that run on are cut at
   the next iteration boundary, so that the newcomer is looked at there.
2. ``start``: prompts first, then decodes as far as the batch allows (those preempted most often
   go before prompts), then newcomers from the ready queue. (Prompts: ``prompts``.)
3. Iterations without a prompt differ only in their context, so all of them up to the next
   finish are one segment: iteration i takes ``first_s + i * growth_s``, summed in closed form.
4. ``end``: tokens come out, finished requests free their cache, computed prompts leave for their
   token machine, and the machine starts again, or stands idle and goes home to its pool.
"""

import math
from typing import Any

from splitwise.scheduling.batching import decode_places
from splitwise.scheduling.cluster_state import rank
from splitwise.scheduling.ranking import OUT, set_key
from splitwise.simulation.compiled import compiled, inlined
from splitwise.simulation.grown import grow, iterations_before_growth, take_in
from splitwise.simulation.memory import try_grow
from splitwise.simulation.prompts import first_token, note_skip, take_prompts
from splitwise.simulation.roles import settle
from splitwise.simulation.slots import drop_finished, join, seated_context
from splitwise.simulation.state import (
    DECODE,
    IDLE,
    MAX_SLOTS,
    MIXED,
    NONE,
    OCCUPANCY_BINS,
    PROMPT,
    Phase,
)


@inlined
def kick(state: Any, machine: int, now: float) -> None:
    """Something waits on this machine."""
    here = state.machines[machine]
    if here.running == IDLE:
        start(state, machine, now)
    elif here.running == DECODE and not here.is_cut:
        cut(state, machine, now)


@inlined
def wake_blocked(state: Any, machine: int, now: float) -> None:
    """Memory has come free here: machines whose next prompt waited for it look again."""
    here = state.machines[machine]
    other = here.blocked_head
    here.blocked_head = NONE
    here.blocked_tail = NONE
    while other != NONE:
        following = state.machines[other].blocked_next
        state.machines[other].blocked_on = NONE
        kick(state, other, now)
        other = following


@inlined
def duration_s(here: Any, iterations: int) -> float:
    """Seconds that the segment's first ``iterations`` take."""
    return float(iterations * here.first_s + here.growth_s * (iterations * (iterations - 1) // 2))


@inlined
def cut(state: Any, machine: int, now: float) -> None:
    """End the segment with the iteration that is running at ``now``, or ends then if the machine
    has not had its turn."""
    here = state.machines[machine]
    ended = ended_iterations(here, now)
    is_next = machine > state.progress[0].turn and ended > 0
    if is_next and here.start_s + duration_s(here, ended) == now:
        ended -= 1
    here.iterations = min(here.iterations, ended + 1)
    here.is_cut = True
    set_key(state.ends, 0, machine, here.start_s + duration_s(here, here.iterations))


@inlined
def ended_iterations(here: Any, now: float) -> int:
    """How many iterations of the segment are over at ``now``."""
    elapsed_s = now - here.start_s
    slope = here.growth_s / 2
    linear = here.first_s - slope
    if slope > 0:
        root = math.sqrt(linear * linear + 4 * slope * elapsed_s)
        ended = int(2 * elapsed_s / (linear + root))
    else:
        ended = int(elapsed_s / here.first_s)
    while ended > 0 and duration_s(here, ended) > elapsed_s:
        ended -= 1
    while duration_s(here, ended + 1) <= elapsed_s:
        ended += 1
    return ended


@compiled
def start(state: Any, machine: int, now: float) -> None:
    """Compose the next batch and run it; idle if there is none."""
    here = state.machines[machine]
    if state.rules.cache_grows:
        take_in(state, machine, now)
        grow(state, machine, now)
    aged = take_prompts(state, machine, now)
    seat_decodes(state, machine, now)
    if here.batch_tokens == 0 and here.active == 0:
        rest(state, machine, now)
        return
    if state.rules.policy_composes:
        note_skip(state, machine)
    decodes = here.active
    decoding = state.kinds.by_decodes[here.kind, decodes]
    here.start_s = now
    here.is_cut = False
    here.growth_s = 0.0
    here.iterations = 1
    context_s = decoding.context_s * seated_context(state, machine)
    if here.batch_tokens == 0:
        here.running = DECODE
        here.first_s = decoding.decode_s + context_s
        here.growth_s = decoding.context_s * decodes
        # Aged decodes held a prompt back: they are aged no more after one iteration. A policy that
        # composes batches is asked before each, as on a server.
        once = (aged > 0 or state.rules.policy_composes) and here.queue_head != NONE
        here.iterations = 1 if once else here.next_finish - here.iteration
        if state.rules.cache_grows:
            here.iterations = min(here.iterations, iterations_before_growth(state, machine))
        here.is_cut = here.iterations == 1
    elif decodes == 0:
        here.running = PROMPT
        here.first_s = state.kinds.by_tokens[here.kind, here.batch_tokens].prompt_s
    else:
        here.running = MIXED
        plain_s = state.kinds.by_tokens[here.kind, here.batch_tokens + decodes].prompt_s
        here.first_s = state.kinds.fixed[here.kind].mixed_factor * plain_s + context_s
    set_key(state.ends, 0, machine, now + duration_s(here, here.iterations))


@inlined
def rest(state: Any, machine: int, now: float) -> None:
    """Nothing can run."""
    here = state.machines[machine]
    here.running = IDLE
    set_key(state.ends, 0, machine, OUT)
    settle(state, machine, now)


@inlined
def seat_decodes(state: Any, machine: int, now: float) -> None:
    """Choose the decodes of the batch: those started, then newcomers whose cache is here."""
    here = state.machines[machine]
    rules = state.rules
    left = decode_places(
        here.batch_prompts, here.batch_tokens, rules.batch_requests, rules.batch_tokens
    )
    here.active = min(here.started, left)
    hold(state, machine)
    while here.active < left and here.started < MAX_SLOTS and here.ready_head != NONE:
        request = here.ready_head
        one = state.requests[request]
        if not try_grow(state, machine, one):
            break
        here.ready_head = one.next
        state.cluster.waiting[machine] -= rules.ready_waits
        one.phase = Phase.DECODE
        one.decode_start_s = now
        join(state, machine, request)
        here.active += 1


@inlined
def hold(state: Any, machine: int) -> None:
    """The slots past the active ones are preempted: they wait with their cache in place."""
    here = state.machines[machine]
    for slot in range(here.active, here.started):
        seat = state.slots[machine, slot]
        seat.skips += 1
        state.requests[seat.request].preemptions += 1


@compiled
def end(state: Any, machine: int, now: float) -> None:
    """The running segment is over."""
    here = state.machines[machine]
    account(state, machine, now)
    used_tokens = here.memory_tokens
    here.prompt_tokens_done += here.batch_tokens
    here.tokens_out += here.active * here.iterations
    if here.active > 0:
        drop_finished(state, machine, now)
    request = here.batch_head
    while request != NONE:
        following = state.requests[request].next
        first_token(state, request, now)
        request = following
    if here.chunk_tokens > 0:
        state.requests[here.queue_head].done_tokens += here.chunk_tokens
    rank(state.cluster, machine)
    if here.memory_tokens < used_tokens:
        wake_blocked(state, machine, now)
    start(state, machine, now)


@inlined
def account(state: Any, machine: int, now: float) -> None:
    """Book the segment's time and energy."""
    here = state.machines[machine]
    kinds = state.kinds
    spent_s = now - here.start_s
    here.busy_s += spent_s
    tokens = here.batch_tokens + here.active
    if here.running == DECODE:
        here.decode_busy_s += spent_s
        here.energy_joules += spent_s * kinds.by_decodes[here.kind, here.active].watts
    else:
        here.energy_joules += spent_s * kinds.by_tokens[here.kind, tokens].watts
        if here.running == PROMPT:
            here.prompt_busy_s += spent_s
        else:
            here.mixed_busy_s += spent_s
    state.occupancy_s[machine, min(tokens, OCCUPANCY_BINS - 1)] += spent_s
    log = state.log
    entry = log.written[0].segments
    if entry < len(log.segments):
        log.written[0].segments += 1
        segment = log.segments[entry]
        segment.machine = machine
        segment.start_s = here.start_s
        segment.end_s = now
        segment.kind = here.running
        segment.prompts = here.batch_prompts
        segment.decodes = here.active
        segment.iterations = here.iterations
