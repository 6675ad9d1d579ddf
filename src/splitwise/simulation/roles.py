"""Role changes, as they are written down."""

from typing import Any

from splitwise.scheduling.cluster_state import go_home
from splitwise.simulation.compiled import inlined


@inlined
def note_pool(state: Any, machine: int, now: float) -> None:
    """Something may have moved the machine into another pool; write it down."""
    log = state.log
    pool = state.cluster.pool[machine]
    if log.pool[machine] == pool:
        return
    log.pool[machine] = pool
    entry = log.written[0].role_changes
    if entry < len(log.role_changes):
        log.written[0].role_changes += 1
        change = log.role_changes[entry]
        change.time_s = now
        change.machine = machine
        change.pool = pool


@inlined
def settle(state: Any, machine: int, now: float) -> None:
    """A machine that something was taken off may have nothing left and so go home."""
    go_home(state.cluster, machine)
    note_pool(state, machine, now)
