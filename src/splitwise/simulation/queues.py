"""First come, first served: queues of requests linked through their own records."""

from typing import Any

from splitwise.simulation.compiled import inlined
from splitwise.simulation.state import NONE


@inlined
def append_prompt(state: Any, machine: int, request: int) -> None:
    """A prompt joins the machine's queue."""
    here = state.machines[machine]
    state.requests[request].next = NONE
    if here.queue_head == NONE:
        here.queue_head = request
    else:
        state.requests[here.queue_tail].next = request
    here.queue_tail = request
    state.cluster.waiting[machine] += 1


@inlined
def append_ready(state: Any, machine: int, request: int) -> None:
    """A request whose cache is here waits for its token phase."""
    here = state.machines[machine]
    state.requests[request].next = NONE
    if here.ready_head == NONE:
        here.ready_head = request
    else:
        state.requests[here.ready_tail].next = request
    here.ready_tail = request
    state.cluster.waiting[machine] += 1


@inlined
def append_inbound(state: Any, machine: int, request: int) -> None:
    """A transfer waits for room on the machine."""
    here = state.machines[machine]
    state.requests[request].next = NONE
    if here.inbound_head == NONE:
        here.inbound_head = request
    else:
        state.requests[here.inbound_tail].next = request
    here.inbound_tail = request
