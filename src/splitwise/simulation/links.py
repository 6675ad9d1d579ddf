"""Links between machines: when a request's cache has arrived on its token machine.

Layer-wise, layer i travels while layer i + 1 is computed, so that only the last layer, or what a
slow link lags behind, is seen after the prompt. In one piece, all travels after the prompt. A
machine's own link carries one transfer after another when links are shared; else each transfer
has the link for itself.
"""

from typing import Any

from splitwise.simulation.compiled import inlined
from splitwise.simulation.queues import append_inbound
from splitwise.simulation.state import NONE


@inlined
def push(heap: Any, time_s: float, request: int) -> None:
    """Add an event; the heap has room for one entry a request."""
    i = heap.size[0]
    heap.size[0] += 1
    while i > 0:
        parent = (i - 1) // 2
        if heap.time_s[parent] <= time_s:
            break
        heap.time_s[i] = heap.time_s[parent]
        heap.request[i] = heap.request[parent]
        i = parent
    heap.time_s[i] = time_s
    heap.request[i] = request


@inlined
def pop(heap: Any) -> int:
    """Take the earliest event's request off the heap."""
    taken = heap.request[0]
    heap.size[0] -= 1
    last = heap.size[0]
    time_s = heap.time_s[last]
    request = heap.request[last]
    i = 0
    while 2 * i + 1 < last:
        child = 2 * i + 1
        if child + 1 < last and heap.time_s[child + 1] < heap.time_s[child]:
            child += 1
        if heap.time_s[child] >= time_s:
            break
        heap.time_s[i] = heap.time_s[child]
        heap.request[i] = heap.request[child]
        i = child
    heap.time_s[i] = time_s
    heap.request[i] = request
    return int(taken)


@inlined
def has_room(state: Any, machine: int, tokens: int) -> bool:
    """Whether the machine's memory holds ``tokens`` more."""
    used = state.machines[machine].memory_tokens
    return bool(used + tokens <= state.cluster.kv_capacity_tokens[machine])


@inlined
def take_memory(state: Any, machine: int, tokens: int) -> None:
    """Use memory of the machine."""
    here = state.machines[machine]
    here.memory_tokens += tokens
    if here.memory_tokens > here.peak_memory_tokens:
        here.peak_memory_tokens = here.memory_tokens


@inlined
def prompt_memory(one: Any) -> int:
    """Cache a request takes on its prompt machine; all it will ever need if it stays there.

    Taken at once, for two requests that each hold their prompt and wait for room for their
    output would wait for ever.
    """
    if one.token_machine == one.prompt_machine:
        return int(one.prompt_tokens + one.output_tokens)
    return int(one.prompt_tokens + 1)


@inlined
def send(state: Any, request: int, now: float, early: bool) -> None:
    """Start a transfer, or let it wait for room; ``early``: layers left during the prompt."""
    one = state.requests[request]
    target = one.token_machine
    if not has_room(state, target, one.prompt_tokens + one.output_tokens):
        if state.rules.retry_s > 0:
            push(state.transfers, now + state.rules.retry_s, request)
        else:
            append_inbound(state, target, request)
        return
    take_memory(state, target, one.prompt_tokens + one.output_tokens)
    source = state.machines[one.prompt_machine]
    to = state.machines[target]
    kinds = state.kinds
    rate = min(kinds.link_bytes_per_s[source.kind], kinds.link_bytes_per_s[to.kind])
    whole_s = one.prompt_tokens * kinds.kv_bytes_per_token[source.kind] / rate
    layers = kinds.layers[source.kind]
    start_s = now
    if early:
        start_s = now - one.prompt_part_s * (layers - 1) / layers
    if state.rules.share_links:
        start_s = max(start_s, source.egress_free_s, to.ingress_free_s)
    end_s = start_s + whole_s
    if early:
        end_s = max(end_s, now + whole_s / layers)
    source.egress_free_s = end_s
    to.ingress_free_s = end_s
    one.transfer_start_s = start_s
    one.transfer_end_s = end_s + state.rules.link_latency_s
    push(state.transfers, one.transfer_end_s, request)


@inlined
def admit_inbound(state: Any, machine: int, now: float) -> None:
    """Room has come free: transfers that waited for it start, first come, first served."""
    here = state.machines[machine]
    while here.inbound_head != NONE:
        request = here.inbound_head
        one = state.requests[request]
        if not has_room(state, machine, one.prompt_tokens + one.output_tokens):
            return
        here.inbound_head = state.requests[request].next
        send(state, request, now, False)
