"""The cluster's line, where the cache grows: requests that no machine has room for yet.

Preempted requests, and those whose machine failed, come before all that never began, oldest first;
those that never began as the policy orders them (``goes_before``). Who finds no room stands aside
while ``dispatch.hand_out`` tries smaller ones that may pass, and then returns to its place. Who
fits no machine that is up is parked until one comes up that could hold it (``waiting``).

The line is a binary heap: ``line`` holds requests, the first at index 0.
"""

from typing import Any

from splitwise.scheduling.decision import WaitingRequest
from splitwise.scheduling.placement import could_hold
from splitwise.scheduling.waiting import Turn, goes_before, may_pass
from splitwise.simulation.charges import in_blocks
from splitwise.simulation.compiled import inlined
from splitwise.simulation.policy_calls import order_by


@inlined
def join_line(state: Any, request: int) -> None:
    """A request waits for its machines."""
    one = state.requests[request]
    if one.attempts == 0:
        one.order = order_by(state.policy, WaitingRequest(request + 1, 0, one.prompt_tokens))
    one.passed_tokens = 0
    state.progress[0].waiting += 1
    stand(state, request)


@inlined
def stand(state: Any, request: int) -> None:
    """Stand in line, where it belongs."""
    line, progress = state.line, state.progress[0]
    place = progress.in_line
    progress.in_line += 1
    while place > 0:
        above = (place - 1) // 2
        if is_before(state, line[above], request):
            break
        line[place] = line[above]
        place = above
    line[place] = request


@inlined
def first_in_line(state: Any) -> int:
    """Who goes next; there must be somebody."""
    return int(state.line[0])


@inlined
def leave_line(state: Any) -> None:
    """The first of the line goes."""
    state.progress[0].waiting -= 1
    step_out(state)


@inlined
def step_out(state: Any) -> None:
    """The first of the line stands in it no more."""
    line, progress = state.line, state.progress[0]
    progress.in_line -= 1
    count = progress.in_line
    last = line[count]
    place = 0
    while 2 * place + 1 < count:
        below = 2 * place + 1
        if below + 1 < count and is_before(state, line[below + 1], line[below]):
            below += 1
        if is_before(state, last, line[below]):
            break
        line[place] = line[below]
        place = below
    line[place] = last


@inlined
def is_before(state: Any, request: int, other: int) -> bool:
    """Whether one of two that wait goes before the other."""
    return goes_before(turn_of(state, request), turn_of(state, other))


@inlined
def turn_of(state: Any, request: int) -> Turn:
    """What says when a request goes."""
    one = state.requests[request]
    return Turn(one.attempts > 0, one.order, request)


@inlined
def needed_to_begin(state: Any, request: int) -> int:
    """The cache that a request needs for its prompt and a token."""
    return in_blocks(state, state.requests[request].prompt_tokens + 1)


@inlined
def may_go_before(state: Any, tokens: int, other: int) -> bool:
    """Whether one that needs so many tokens may pass another, who found no room."""
    passed_tokens = state.requests[other].passed_tokens
    largest_tokens = state.rules.largest_tokens
    return may_pass(tokens, needed_to_begin(state, other), passed_tokens, largest_tokens)


@inlined
def park(state: Any) -> None:
    """The first of the line fits no machine that is up."""
    state.requests[first_in_line(state)].is_parked = True
    step_out(state)


@inlined
def unpark(state: Any, arrived: int) -> None:
    """A machine has come up: whom it can hold goes back in line; ``arrived`` requests have come."""
    for request in range(arrived):
        one = state.requests[request]
        if one.is_parked and could_hold(state.cluster, needed_to_begin(state, request)):
            one.is_parked = False
            state.progress[0].waiting -= 1
            join_line(state, request)
