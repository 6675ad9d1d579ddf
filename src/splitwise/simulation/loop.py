"""The event loop: the earliest of the next arrival, machine, transfer and outage.

1. An arrival is placed on its two machines at once, and its prompt joins a queue: ``dispatch``.
   Where the cache grows, it joins the cluster's line, which is served after every event.
2. A machine's segment ends: ``machine.end``.
3. A transfer ends: the prompt machine's cache is free, the request joins its token machine.
4. A machine goes down or comes up: ``failures``.

Of what falls in one instant machines that end an iteration come first, in order of their numbers;
then transfers, the older request's first; then outages; then arrivals.
"""

from typing import Any

import numpy as np

from splitwise.scheduling.ranking import NOBODY, first
from splitwise.simulation.compiled import compiled, inlined
from splitwise.simulation.dispatch import dispatch, serve_line
from splitwise.simulation.failures import change_machine
from splitwise.simulation.grown import report_arrival
from splitwise.simulation.line import join_line, leave_line
from splitwise.simulation.links import pop, send
from splitwise.simulation.machine import end, kick, wake_blocked
from splitwise.simulation.memory import leave_prompt_machine
from splitwise.simulation.queues import append_ready
from splitwise.simulation.result import Status
from splitwise.simulation.state import Phase

REJECTED = int(Status.REJECTED)


@compiled
def advance(state: Any, arrived: int, until: int) -> int:
    """Run from request ``arrived`` on until ``until`` requests have come, or to the end.

    Returns how many have come. With ``until`` equal to the number of requests, everything that
    can still happen does.
    """
    count = len(state.requests)
    ranking = state.ends
    last_s = 0.0
    while True:
        arrival_s = state.requests[arrived].arrival_s if arrived < count else np.inf
        machine = first(ranking, 0)
        end_s = ranking.key[0, machine] if machine != NOBODY else np.inf
        transfers = state.transfers
        link_s = transfers.heap[0].time_s if transfers.size[0] > 0 else np.inf
        outage_s = next_outage_s(state)
        now = min(arrival_s, end_s, link_s)
        if now == np.inf and (state.progress[0].waiting == 0 or outage_s == np.inf):
            if state.progress[0].in_line == 0:
                return int(arrived)
            leave_line(state)  # no machine will ever be up that holds it
            serve_line(state, last_s)
            continue
        now = min(now, outage_s)
        last_s = now
        sample(state, now)
        state.progress[0].turn = machine if end_s == now else len(state.machines)
        if end_s == now:
            end(state, machine, now)
        elif link_s == now:
            deliver(state, pop(transfers), now)
        elif outage_s == now:
            change_machine(state, arrived, now)
        elif arrived == until:
            return int(arrived)
        else:
            if state.requests[arrived].status != REJECTED:
                arrive(state, arrived, now)
            arrived += 1
        serve_line(state, now)


@inlined
def arrive(state: Any, request: int, now: float) -> None:
    """A request comes."""
    if state.rules.cache_grows:
        join_line(state, request)
    else:
        dispatch(state, request, now)


@inlined
def next_outage_s(state: Any) -> float:
    """When the next machine goes down or up."""
    event = state.progress[0].outages
    return state.outages[event].time_s if event < len(state.outages) else np.inf


@inlined
def deliver(state: Any, request: int, now: float) -> None:
    """A transfer has ended, or it is time to ask again whether there is room for it."""
    one = state.requests[request]
    if np.isnan(one.transfer_end_s):
        send(state, request, now, False)
        return
    leave_prompt_machine(state, one)
    append_ready(state, one.token_machine, request)
    one.phase = Phase.ARRIVED
    if not state.rules.cache_grows:  # else its token machine has to look first (``take_in``)
        report_arrival(state, one, now)
    wake_blocked(state, one.prompt_machine, now)
    kick(state, one.prompt_machine, now)
    kick(state, one.token_machine, now)


@inlined
def sample(state: Any, now: float) -> None:
    """Write down the cluster's state at every sampling time up to ``now``."""
    log = state.log
    entry = log.written[0].samples
    while entry < len(log.samples) and entry * state.rules.sample_every_s <= now:
        one = log.samples[entry]
        one.time_s = entry * state.rules.sample_every_s
        for machine in range(len(state.machines)):
            here = state.machines[machine]
            one.waiting_prompts += state.cluster.waiting[machine]
            one.running_decodes += here.started
            one.kv_tokens += here.memory_tokens
            log.pool_sizes[entry, state.cluster.pool[machine]] += state.cluster.up[machine]
        entry += 1
        log.written[0].samples = entry
