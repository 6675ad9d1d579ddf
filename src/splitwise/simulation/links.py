"""Links between machines: when a request's cache has arrived on its token machine.

Layer-wise, layer i travels while layer i + 1 is computed, so that only the last layer, or what a
slow link lags behind, is seen after the prompt. In one piece, all travels after the prompt. A
machine's own link carries one transfer after another when links are shared; else each transfer
has the link for itself.
"""

from typing import Any

from splitwise.simulation.compiled import inlined
from splitwise.simulation.memory import early_memory, has_room, hold


@inlined
def is_before(heap: Any, i: int, time_s: float, request: int) -> bool:
    """Whether entry ``i`` comes before another; of equal times, the older request does."""
    one = heap[i]
    return bool(one.time_s < time_s or (one.time_s == time_s and one.request < request))


@inlined
def push(transfers: Any, time_s: float, request: int) -> None:
    """Add an event; the heap has room for one entry a request."""
    heap = transfers.heap
    i = transfers.size[0]
    transfers.size[0] += 1
    while i > 0:
        parent = (i - 1) // 2
        if is_before(heap, parent, time_s, request):
            break
        heap[i] = heap[parent]
        i = parent
    heap[i].time_s = time_s
    heap[i].request = request


@inlined
def pop(transfers: Any) -> int:
    """Take the earliest event's request off the heap."""
    heap = transfers.heap
    taken = heap[0].request
    transfers.size[0] -= 1
    last = transfers.size[0]
    time_s = heap[last].time_s
    request = heap[last].request
    i = 0
    while 2 * i + 1 < last:
        child = 2 * i + 1
        one = heap[child]
        if child + 1 < last and is_before(heap, child + 1, one.time_s, one.request):
            child += 1
        if not is_before(heap, child, time_s, request):
            break
        heap[i] = heap[child]
        i = child
    heap[i].time_s = time_s
    heap[i].request = request
    return int(taken)


@inlined
def drop(transfers: Any, request: int) -> None:
    """Take the request's event out, if there is one."""
    size = transfers.size[0]
    transfers.size[0] = 0
    for i in range(size):
        one = transfers.heap[i]
        if one.request != request:
            push(transfers, one.time_s, one.request)


@inlined
def send(state: Any, request: int, now: float, early: bool) -> None:
    """Start a transfer; ``early``: layers left during the prompt.

    Where room is not reserved beforehand, it is taken now, or asked for again later.
    """
    one = state.requests[request]
    target = one.token_machine
    if state.rules.retry_s > 0:
        if not has_room(state, target, early_memory(state, one)):
            push(state.transfers, now + state.rules.retry_s, request)
            return
        hold(state, one, early_memory(state, one))
    source = state.machines[one.prompt_machine]
    to = state.machines[target]
    kind = state.kinds.fixed[source.kind]
    to_kind = state.kinds.fixed[to.kind]
    rate = min(kind.link_bytes_per_s, to_kind.link_bytes_per_s)
    whole_s = one.prompt_tokens * kind.kv_bytes_per_token / rate
    layers = kind.layers
    start_s = now
    if early:
        start_s = now - (now - one.attempt_start_s) * (layers - 1) / layers
        if one.transfer_start_s > start_s:  # room came free while the prompt ran
            start_s = one.transfer_start_s
    if state.rules.share_links:
        start_s = max(start_s, source.egress_free_s, to.ingress_free_s)
    end_s = start_s + whole_s
    if early:
        end_s = max(end_s, now + whole_s / layers)
    source.egress_free_s = end_s
    to.ingress_free_s = end_s
    one.transfer_start_s = start_s
    one.transfer_end_s = end_s + max(kind.link_latency_s, to_kind.link_latency_s)
    push(state.transfers, one.transfer_end_s, request)
