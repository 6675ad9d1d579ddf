"""The cluster's line, where the cache grows: requests that no machine has room for yet.

Preempted requests, and those whose machine failed, come before all that never began, oldest first.
One who finds no room holds up all behind it.
"""

from typing import Any

from splitwise.simulation.compiled import inlined
from splitwise.simulation.state import NONE


@inlined
def join_line(state: Any, request: int) -> None:
    """A request waits for its machines."""
    state.outages.progress[1] += 1
    line = state.line[0]
    before = NONE
    following = line.head
    if state.requests[request].attempts == 0:
        before = line.tail
        following = NONE
    while following != NONE and goes_before(state, following, request):
        before = following
        following = state.requests[following].next
    state.requests[request].next = following
    if before == NONE:
        line.head = request
    else:
        state.requests[before].next = request
    if following == NONE:
        line.tail = request


@inlined
def goes_before(state: Any, waiting: int, returned: int) -> bool:
    """Whether one who waits already goes before one that had machines before."""
    return bool(state.requests[waiting].attempts > 0 and waiting < returned)


@inlined
def leave_line(state: Any) -> None:
    """The first of the line goes."""
    state.outages.progress[1] -= 1
    line = state.line[0]
    first = line.head
    line.head = state.requests[first].next
    state.requests[first].next = NONE
    if line.head == NONE:
        line.tail = NONE
