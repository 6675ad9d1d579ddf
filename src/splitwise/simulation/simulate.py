"""``simulate``: one cluster, one load, one answer.

1. The cluster's machines and the options (``options``) become arrays (``arrays``, ``state``).
2. The compiled loop (``loop.advance``) runs in slices, so that a progress callback is heard.
3. The arrays become a ``Result``.
"""

from collections.abc import Callable, Sequence
from typing import Final

from splitwise.scheduling.pool import Pool
from splitwise.simulation.arrays import new_state, result_of
from splitwise.simulation.compiled import say_if_it_compiles
from splitwise.simulation.loop import advance
from splitwise.simulation.options import (
    BLOCK_TOKENS,
    CACHES,
    PUBLISHED_2024,
    RULES,
    Load,
    MachineGroup,
    Options,
    Outage,
    rules_named,
)
from splitwise.simulation.policy_calls import policy_error
from splitwise.simulation.result import Result

__all__ = [
    "BLOCK_TOKENS",
    "CACHES",
    "PUBLISHED_2024",
    "RULES",
    "Load",
    "MachineGroup",
    "Options",
    "Outage",
    "rules_named",
    "simulate",
]

SLICE_REQUESTS: Final = 50_000


def simulate(
    requests: Load,
    cluster: Sequence[MachineGroup],
    options: Options | None = None,
    outages: Sequence[Outage] = (),
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Run ``requests`` through ``cluster`` until nothing more can happen.

    ``progress`` is called with the number of requests that have arrived so far. Requests larger
    than any machine's cache, and those for whom no machine ever came up again, are rejected with
    a reason. Raises ValueError for a cluster, a load or an outage that cannot be, and PolicyError,
    which is one, for a policy that fails or decides what cannot be.
    """
    groups = [group for group in cluster if group.count != 0]
    check(requests, groups)
    check_outages(outages, sum(group.count for group in groups))
    chosen = options or Options()
    say_if_it_compiles()
    state = new_state(requests, groups, chosen, outages)
    total = len(requests.arrival_s)
    arrived = 0
    while arrived < total:
        try:
            arrived = advance(state, arrived, min(arrived + SLICE_REQUESTS, total))
        except Exception as error:
            wrong = policy_error(chosen.policy, state.policy, error)
            if wrong is None:
                raise
            raise wrong from error
        if progress is not None:
            progress(arrived)
    return result_of(state, requests, groups)


def check(requests: Load, groups: Sequence[MachineGroup]) -> None:
    """Raise ValueError for an empty load or a cluster that cannot serve anybody."""
    if len(requests.arrival_s) == 0:
        raise ValueError("requests: none; a simulation needs at least one")
    if not groups:
        raise ValueError("cluster: no machines; add a group with count >= 1")
    pools = {group.pool for group in groups}
    if Pool.MIXED not in pools and pools != {Pool.PROMPT, Pool.TOKEN}:
        lacks = "token" if Pool.PROMPT in pools else "prompt"
        raise ValueError(f"cluster: no {lacks} machine and no mixed one; add a {lacks} group")
    for group in groups:
        if group.count < 0:
            raise ValueError(f"cluster: {group.name} has count {group.count}; it must be >= 0")
        if group.times.kv_capacity_tokens <= 0:
            raise ValueError(f"cluster: the model does not fit {group.name}; use more memory")


def check_outages(outages: Sequence[Outage], machines: int) -> None:
    """Raise ValueError for an outage of no machine, or of one that is down already."""
    up_s: dict[int, float] = {}
    for outage in sorted(outages, key=lambda one: one.down_s):
        if not 0 <= outage.machine < machines:
            raise ValueError(f"outage: machine {outage.machine}; choose from 0 to {machines - 1}")
        if outage.down_s <= up_s.get(outage.machine, -1.0):
            raise ValueError(
                f"outage: machine {outage.machine} goes down at {outage.down_s:g} s but comes "
                f"up at {up_s[outage.machine]:g} s; put outages of a machine one after the other"
            )
        up_s[outage.machine] = outage.up_s
