"""First come, first served: queues of requests, and of machines, linked through their records."""

from typing import Any

from splitwise.simulation.compiled import inlined
from splitwise.simulation.state import NONE, Phase


@inlined
def _linked(state: Any, head: int, tail: int, request: int) -> int:
    """The head of this queue once the request is its tail."""
    state.requests[request].next = NONE
    if head == NONE:
        return request
    state.requests[tail].next = request
    return head


@inlined
def append_prompt(state: Any, machine: int, request: int) -> None:
    """A prompt joins the machine's queue."""
    here = state.machines[machine]
    state.requests[request].phase = Phase.QUEUED
    here.queue_head = _linked(state, here.queue_head, here.queue_tail, request)
    here.queue_tail = request
    state.cluster.waiting[machine] += 1


@inlined
def append_ready(state: Any, machine: int, request: int) -> None:
    """A request whose cache is here waits for its token phase."""
    here = state.machines[machine]
    state.requests[request].phase = Phase.READY
    here.ready_head = _linked(state, here.ready_head, here.ready_tail, request)
    here.ready_tail = request
    state.cluster.waiting[machine] += state.rules.ready_waits


@inlined
def unlink_ready(state: Any, machine: int, request: int) -> None:
    """Take a request out of those that are ready."""
    here = state.machines[machine]
    before = NONE
    one = here.ready_head
    while one != request:
        before = one
        one = state.requests[one].next
    following = state.requests[request].next
    if before == NONE:
        here.ready_head = following
    else:
        state.requests[before].next = following
    if here.ready_tail == request:
        here.ready_tail = before


@inlined
def append_expected(state: Any, machine: int, request: int) -> None:
    """A request waits for blocks on its token machine, whatever becomes of its prompt meanwhile."""
    here = state.machines[machine]
    state.requests[request].expected_next = NONE
    state.requests[request].is_expected = True
    if here.expected_head == NONE:
        here.expected_head = request
    else:
        state.requests[here.expected_tail].expected_next = request
    here.expected_tail = request


@inlined
def pop_expected(state: Any, machine: int) -> None:
    """The first of those that wait for blocks has them."""
    here = state.machines[machine]
    first = state.requests[here.expected_head]
    first.is_expected = False
    here.expected_head = first.expected_next


@inlined
def unlink_expected(state: Any, machine: int, request: int) -> None:
    """Take a request out of those that wait for blocks."""
    here = state.machines[machine]
    if here.expected_head == request:
        pop_expected(state, machine)
        return
    before = here.expected_head
    while state.requests[before].expected_next != request:
        before = state.requests[before].expected_next
    state.requests[request].is_expected = False
    state.requests[before].expected_next = state.requests[request].expected_next
    if here.expected_tail == request:
        here.expected_tail = before


@inlined
def unlink_prompt(state: Any, machine: int, request: int) -> None:
    """Take a prompt out of the machine's queue or of its running batch, wherever it is."""
    here = state.machines[machine]
    before = NONE
    one = here.queue_head
    while one != NONE and one != request:
        before = one
        one = state.requests[one].next
    following = state.requests[request].next
    if one == request:
        state.cluster.waiting[machine] -= 1
        if before == NONE:
            here.queue_head = following
            here.chunk_tokens = 0  # the head may have been under way
        else:
            state.requests[before].next = following
        if here.queue_tail == request:
            here.queue_tail = before
        return
    if here.batch_head == request:
        here.batch_head = following
        return
    one = here.batch_head
    while state.requests[one].next != request:
        one = state.requests[one].next
    state.requests[one].next = following


@inlined
def block(state: Any, machine: int, target: int) -> None:
    """The machine's next prompt waits for room on ``target``, after those that already do."""
    here = state.machines[machine]
    if here.blocked_on != NONE:
        return
    here.blocked_on = target
    here.blocked_next = NONE
    there = state.machines[target]
    if there.blocked_head == NONE:
        there.blocked_head = machine
    else:
        state.machines[there.blocked_tail].blocked_next = machine
    there.blocked_tail = machine
