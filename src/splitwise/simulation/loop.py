"""The event loop: the earliest of the next arrival, the next machine and the next transfer.

1. An arrival is placed on its two machines at once, and its prompt joins a queue.
2. A machine's segment ends: ``machine.end``.
3. A transfer ends: the prompt machine's cache is free, the request joins its token machine.
"""

from typing import Any

import numpy as np

from splitwise.scheduling.placement import place, rank
from splitwise.scheduling.ranking import NOBODY, first
from splitwise.simulation.compiled import compiled, inlined
from splitwise.simulation.links import admit_inbound, pop, send
from splitwise.simulation.machine import end, kick
from splitwise.simulation.queues import append_prompt, append_ready
from splitwise.simulation.result import Status

REJECTED = int(Status.REJECTED)


@compiled
def advance(state: Any, arrived: int, until: int) -> int:
    """Run from request ``arrived`` on until ``until`` requests have come, or to the end.

    Returns how many have come. With ``until`` equal to the number of requests, everything that
    can still happen does.
    """
    count = len(state.requests)
    ranking = state.ends
    while True:
        arrival_s = state.requests[arrived].arrival_s if arrived < count else np.inf
        machine = first(ranking)
        end_s = ranking.key[machine] if machine != NOBODY else np.inf
        transfers = state.transfers
        link_s = transfers.time_s[0] if transfers.size[0] > 0 else np.inf
        now = min(arrival_s, end_s, link_s)
        if now == np.inf:
            return int(arrived)
        sample(state, now)
        if end_s == now:
            end(state, machine, now)
        elif link_s == now:
            deliver(state, pop(transfers), now)
        elif arrived == until:
            return int(arrived)
        else:
            arrive(state, arrived, now)
            arrived += 1


@inlined
def arrive(state: Any, request: int, now: float) -> None:
    """Place a request and queue its prompt."""
    one = state.requests[request]
    if one.status == REJECTED:
        return
    cluster = state.cluster
    rules = state.rules
    kv_tokens = one.prompt_tokens + one.output_tokens
    prompt, token = place(
        cluster, one.prompt_tokens, kv_tokens, rules.queue_threshold_tokens, rules.change_roles
    )
    if one.output_tokens == 1:
        token = prompt
    one.prompt_machine = prompt
    one.token_machine = token
    cluster.pending_tokens[prompt] += one.prompt_tokens
    cluster.pending_tokens[token] += 1
    cluster.kv_tokens[token] += kv_tokens
    if prompt != token:
        cluster.kv_tokens[prompt] += one.prompt_tokens + 1
        rank(cluster, token)
    rank(cluster, prompt)
    append_prompt(state, prompt, request)
    kick(state, prompt, now)


@inlined
def deliver(state: Any, request: int, now: float) -> None:
    """A transfer has ended, or it is time to ask again whether there is room for it."""
    one = state.requests[request]
    if np.isnan(one.transfer_end_s):
        send(state, request, now, False)
        return
    source = one.prompt_machine
    state.machines[source].memory_tokens -= one.prompt_tokens + 1
    state.cluster.kv_tokens[source] -= one.prompt_tokens + 1
    rank(state.cluster, source)
    admit_inbound(state, source, now)
    kick(state, source, now)
    append_ready(state, one.token_machine, request)
    kick(state, one.token_machine, now)


@inlined
def sample(state: Any, now: float) -> None:
    """Write down the cluster's state at every sampling time up to ``now``."""
    log = state.log
    entry = log.written[1]
    while entry < len(log.sample_s) and entry * state.rules.sample_every_s <= now:
        log.sample_s[entry] = entry * state.rules.sample_every_s
        for machine in range(len(state.machines)):
            here = state.machines[machine]
            log.waiting_prompts[entry] += state.cluster.waiting[machine]
            log.running_decodes[entry] += here.started
            log.kv_tokens[entry] += here.memory_tokens
            log.pool_sizes[entry, state.cluster.pool[machine]] += 1
        entry += 1
        log.written[1] = entry
