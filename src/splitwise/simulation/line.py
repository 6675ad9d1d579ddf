"""The cluster's line, where the cache grows: requests that no machine has room for yet.

Preempted requests, and those whose machine failed, come before all that never began, oldest first;
those that never began as the policy orders them (``goes_before``). One who finds no room holds up
all behind it. The line is a binary heap: ``line`` holds requests, the first at index 0.
"""

from typing import Any

from splitwise.scheduling.decision import WaitingRequest
from splitwise.scheduling.waiting import Turn, goes_before
from splitwise.simulation.compiled import inlined
from splitwise.simulation.policy_calls import order_by


@inlined
def join_line(state: Any, request: int) -> None:
    """A request waits for its machines."""
    one = state.requests[request]
    if one.attempts == 0:
        one.order = order_by(state.policy, WaitingRequest(request + 1, 0, one.prompt_tokens))
    line, progress = state.line, state.progress[0]
    place = progress.in_line
    progress.in_line += 1
    progress.waiting += 1
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
    line, progress = state.line, state.progress[0]
    progress.in_line -= 1
    progress.waiting -= 1
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
