"""The cluster's line, where the cache grows: requests that no machine has room for yet.

Preempted requests, and those whose machine failed, come before all that never began, oldest first.
One who finds no room holds up all behind it.
"""

from typing import Any

from splitwise.scheduling.waiting import goes_before
from splitwise.simulation.compiled import inlined
from splitwise.simulation.state import NONE


@inlined
def join_line(state: Any, request: int) -> None:
    """A request waits for its machines."""
    line = state.progress[0]
    line.waiting += 1
    one = state.requests[request]
    before = NONE
    following = line.line_head
    if one.attempts == 0:  # it came last
        before = line.line_tail
        following = NONE
    while following != NONE and goes_before(
        state.requests[following].attempts > 0, following, one.attempts > 0, request
    ):
        before = following
        following = state.requests[following].next
    state.requests[request].next = following
    if before == NONE:
        line.line_head = request
    else:
        state.requests[before].next = request
    if following == NONE:
        line.line_tail = request


@inlined
def leave_line(state: Any) -> None:
    """The first of the line goes."""
    line = state.progress[0]
    line.waiting -= 1
    first = line.line_head
    line.line_head = state.requests[first].next
    state.requests[first].next = NONE
    if line.line_head == NONE:
        line.line_tail = NONE
