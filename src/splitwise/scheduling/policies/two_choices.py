"""The less loaded of two random machines, for each of the two phases.

Two draws are enough to stay far from the longest queue (Mitzenmacher, 2001), and schedulers that
do not see each other's decisions do not all run to the machine that was idle a moment ago. No
machine changes its role for it: prompts go to the prompt and the mixed pool, tokens to the token
and the mixed pool, and both to any one machine where no machine is left for a phase.
"""

from typing import Final

from splitwise.scheduling.cluster_state import ClusterState, has_room, room_tokens, takes_requests
from splitwise.scheduling.decision import Placement, PlacementRequest, PlacementRules
from splitwise.scheduling.draws import draw
from splitwise.scheduling.pool import Pool
from splitwise.scheduling.ranking import NOBODY
from splitwise.scheduling.shared import shared

_PROMPT: Final = int(Pool.PROMPT)
_TOKEN: Final = int(Pool.TOKEN)
_MIXED: Final = int(Pool.MIXED)
_ANY: Final = -1


@shared
def place(cluster: ClusterState, request: PlacementRequest, rules: PlacementRules) -> Placement:
    """The prompt by pending tokens, the tokens by room for cache."""
    prompt = _less_loaded(cluster, request, _PROMPT, request.prompt_tokens + 1, 0)
    token = _less_loaded(cluster, request, _TOKEN, request.kv_tokens, 2)
    if prompt == NOBODY or token == NOBODY:
        alone = _less_loaded(cluster, request, _ANY, request.kv_tokens, 4)
        return Placement(alone, alone, False)
    return Placement(prompt, token, False)


@shared
def _less_loaded(
    cluster: ClusterState, request: PlacementRequest, pool: int, kv_tokens: int, which: int
) -> int:
    """Of two machines drawn from those with room; without any, from those that could ever hold it.

    ``which`` is the first of the two draws.
    """
    for needs_room in (True, False):
        count = 0
        for machine in range(len(cluster.up)):
            count += _may_run(cluster, machine, pool, kv_tokens, needs_room)
        if count > 0:
            first, second = _two_of(count, request, which)
            one = _nth(cluster, first, pool, kv_tokens, needs_room)
            other = _nth(cluster, second, pool, kv_tokens, needs_room)
            return other if _is_less_loaded(cluster, other, one, pool) else one
    return NOBODY


@shared
def _may_run(
    cluster: ClusterState, machine: int, pool: int, kv_tokens: int, needs_room: bool
) -> bool:
    stands_in = cluster.pool[machine]
    if not takes_requests(cluster, machine) or not (pool == _ANY or stands_in in (pool, _MIXED)):
        return False
    if needs_room:
        return has_room(cluster, machine, kv_tokens)
    return bool(kv_tokens <= cluster.kv_capacity_tokens[machine])


@shared
def _two_of(count: int, request: PlacementRequest, which: int) -> tuple[int, int]:
    """Two different places of ``count``, or the only one twice."""
    first = draw(count, request.number, request.attempt, which)
    if count == 1:
        return first, first
    second = draw(count - 1, request.number, request.attempt, which + 1)
    return first, second + 1 if second >= first else second


@shared
def _nth(cluster: ClusterState, n: int, pool: int, kv_tokens: int, needs_room: bool) -> int:
    """The machine in the n-th place, from 0, of those that may run it."""
    for machine in range(len(cluster.up)):
        if _may_run(cluster, machine, pool, kv_tokens, needs_room):
            if n == 0:
                return machine
            n -= 1
    return NOBODY


@shared
def _is_less_loaded(cluster: ClusterState, one: int, other: int, pool: int) -> bool:
    if pool == _TOKEN:
        return room_tokens(cluster, one) > room_tokens(cluster, other)
    return bool(cluster.pending_tokens[one] < cluster.pending_tokens[other])
