"""Machines that go down, and come back up.

1. ``fail``: the machine's running segment ends where it is; iterations that were over count.
2. Every request that needed the machine is recalled, wherever it stood: its prompt waited or was
   computed there, its cache was on the way from or to it, or its tokens were made there. Prompt
   plus tokens so far are a new prompt, placed anew at once, in order of arrival; where the cache
   grows, as soon as there is room, before requests that never began (``line``).
3. What the requests held on other machines is free, so every machine looks at its queue again.
4. ``recover``: the machine is idle, in its home pool. Requests for whom no machine was up are
   placed, or return to the line.
"""

from typing import Any

from splitwise.scheduling.cluster_state import rank
from splitwise.scheduling.ranking import OUT, set_key
from splitwise.simulation.compiled import compiled, inlined
from splitwise.simulation.dispatch import dispatch
from splitwise.simulation.line import unpark
from splitwise.simulation.machine import account, duration_s, ended_iterations, kick
from splitwise.simulation.recall import recall
from splitwise.simulation.roles import settle
from splitwise.simulation.slots import drop_finished, generated_in
from splitwise.simulation.state import DECODE, IDLE, NONE, Phase


@compiled
def change_machine(state: Any, arrived: int, now: float) -> None:
    """The next outage begins or ends; ``arrived`` requests have come so far."""
    event = state.outages[state.progress[0].outages]
    state.progress[0].outages += 1
    machine = event.machine
    if event.goes_up:
        recover(state, machine, now)
    else:
        fail(state, machine, now)
    if not state.rules.cache_grows:
        place_homeless(state, arrived, now)
    elif event.goes_up:
        unpark(state, arrived)
    look_again(state, now)


@inlined
def place_homeless(state: Any, arrived: int, now: float) -> None:
    """Those recalled, and those for whom no machine was up, are placed."""
    state.progress[0].waiting = 0
    for request in range(arrived):
        one = state.requests[request]
        if one.phase == Phase.AWAY and one.reason == 0:
            dispatch(state, request, now)


@inlined
def fail(state: Any, machine: int, now: float) -> None:
    """Stop the machine and recall everything that needs it."""
    stop_segment(state, machine, now)
    here = state.machines[machine]
    for slot in range(here.started):
        seat = state.slots[machine, slot]
        one = state.requests[seat.request]
        one.last_token_s = seat.last_s
        one.max_tbt_s = seat.gap_s
        recall(state, seat.request, generated_in(state, machine, slot), now)
    for request in range(len(state.requests)):
        one = state.requests[request]
        if one.phase == Phase.AWAY or one.phase == Phase.DONE:
            continue
        if one.token_machine == machine or (
            one.prompt_machine == machine and one.phase <= Phase.SENDING
        ):
            recall(state, request, 1 if one.phase >= Phase.SENDING else 0, now)
    here.started = 0
    here.active = 0
    here.prompt_skips = 0
    here.context_tokens = 0
    here.ready_head = NONE
    here.egress_free_s = now
    here.ingress_free_s = now
    here.down_since_s = now
    state.cluster.waiting[machine] = 0
    state.cluster.up[machine] = False
    rank(state.cluster, machine)


@inlined
def stop_segment(state: Any, machine: int, now: float) -> None:
    """Count the iterations that are over; the one that runs is lost."""
    here = state.machines[machine]
    if here.running == IDLE:
        return
    account(state, machine, now)
    if here.running == DECODE:
        here.iterations = ended_iterations(here, now)
        here.tokens_out += here.active * here.iterations
        if here.iterations > 0:
            drop_finished(state, machine, here.start_s + duration_s(here, here.iterations))
    here.running = IDLE
    set_key(state.ends, 0, machine, OUT)


@inlined
def recover(state: Any, machine: int, now: float) -> None:
    """The machine is up again, with nothing on it."""
    here = state.machines[machine]
    here.down_s += now - here.down_since_s
    state.cluster.up[machine] = True
    settle(state, machine, now)
    rank(state.cluster, machine)


@inlined
def look_again(state: Any, now: float) -> None:
    """Every machine that is up looks at its queues."""
    for machine in range(len(state.machines)):
        here = state.machines[machine]
        here.blocked_on = NONE
        here.blocked_head = NONE
        here.blocked_tail = NONE
        here.has_freed = True
    for machine in range(len(state.machines)):
        if state.cluster.up[machine]:
            kick(state, machine, now)
