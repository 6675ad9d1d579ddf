"""The cluster's line, where the cache grows: requests that no machine has room for yet.

Preempted requests, and those whose machine failed, come before all that never began, oldest first.
One who finds no room holds up all behind it.
"""

from typing import Any

from splitwise.simulation.compiled import inlined
from splitwise.simulation.state import LINE_HEAD, LINE_TAIL, NONE, WAITING


@inlined
def join_line(state: Any, request: int) -> None:
    """A request waits for its machines."""
    line = state.outages.progress
    line[WAITING] += 1
    before = NONE
    following = line[LINE_HEAD]
    if state.requests[request].attempts == 0:
        before = line[LINE_TAIL]
        following = NONE
    while following != NONE and goes_before(state, following, request):
        before = following
        following = state.requests[following].next
    state.requests[request].next = following
    if before == NONE:
        line[LINE_HEAD] = request
    else:
        state.requests[before].next = request
    if following == NONE:
        line[LINE_TAIL] = request


@inlined
def goes_before(state: Any, waiting: int, returned: int) -> bool:
    """Whether one who waits already goes before one that had machines before."""
    return bool(state.requests[waiting].attempts > 0 and waiting < returned)


@inlined
def leave_line(state: Any) -> None:
    """The first of the line goes."""
    line = state.outages.progress
    line[WAITING] -= 1
    first = line[LINE_HEAD]
    line[LINE_HEAD] = state.requests[first].next
    state.requests[first].next = NONE
    if line[LINE_HEAD] == NONE:
        line[LINE_TAIL] = NONE
