"""Links between machines: when a request's cache has arrived on its token machine.

Layer-wise, layer i travels while layer i + 1 is computed, so that only the last layer, or what a
slow link lags behind, is seen after the prompt. In one piece, all travels after the prompt. A
machine's own link carries one transfer after another when links are shared; else each transfer
has the link for itself.
"""

from typing import Any

from splitwise.simulation.compiled import inlined
from splitwise.simulation.memory import has_room, take_memory


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
def drop(heap: Any, request: int) -> None:
    """Take the request's event out, if there is one."""
    size = heap.size[0]
    heap.size[0] = 0
    for i in range(size):
        if heap.request[i] != request:
            push(heap, heap.time_s[i], heap.request[i])


@inlined
def send(state: Any, request: int, now: float, early: bool) -> None:
    """Start a transfer; ``early``: layers left during the prompt.

    Where room is not reserved beforehand, it is taken now, or asked for again later.
    """
    one = state.requests[request]
    target = one.token_machine
    if state.rules.retry_s > 0:
        whole = one.prompt_tokens + one.output_tokens
        if not has_room(state, target, whole):
            push(state.transfers, now + state.rules.retry_s, request)
            return
        take_memory(state, target, whole)
    source = state.machines[one.prompt_machine]
    to = state.machines[target]
    kinds = state.kinds
    rate = min(kinds.link_bytes_per_s[source.kind], kinds.link_bytes_per_s[to.kind])
    whole_s = one.prompt_tokens * kinds.kv_bytes_per_token[source.kind] / rate
    layers = kinds.layers[source.kind]
    start_s = now
    if early:
        start_s = now - (now - one.attempt_start_s) * (layers - 1) / layers
    if state.rules.share_links:
        start_s = max(start_s, source.egress_free_s, to.ingress_free_s)
    end_s = start_s + whole_s
    if early:
        end_s = max(end_s, now + whole_s / layers)
    source.egress_free_s = end_s
    to.ingress_free_s = end_s
    one.transfer_start_s = start_s
    one.transfer_end_s = end_s + max(
        kinds.link_latency_s[source.kind], kinds.link_latency_s[to.kind]
    )
    push(state.transfers, one.transfer_end_s, request)
