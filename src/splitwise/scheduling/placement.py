"""Cluster-level scheduling with role changes, on rankings instead of scans.

The rule (Splitwise, section IV.A and IV.B; thresholds as in the authors' public simulator):

1. Prompt: the least pending machine of the prompt pool, else of the mixed pool; refused if its
   queue is not empty and would pass the threshold.
2. Tokens: the machine of the token pool with the most room, else of the mixed pool; refused if
   the request's whole cache does not fit.
3. Refused everywhere, a machine of the opposite pool is pulled into the mixed pool. It keeps its
   home and returns (``go_home``) when nothing is left there, nor promised to it.
4. Still nobody: one machine, the least pending of all, computes both phases.

Where machines may not be pulled (a static split), a phase waits for those that run it, however long
their queue or full their memory, and step 4 is for a phase that no machine is left for.

A cluster whose machines all live in the mixed pool has no phases to split: the least pending
machine computes both (the baseline).

Machines need not be equal. Only those are asked whose cache could ever hold the request, or it
would block a queue for ever. And a least pending machine whose cache is full at present gives way
to a larger one that has room: pending tokens say nothing of size, and the smallest machine would
be the choice as long as it is full.

``choose_with_room`` lets a request wait instead of a machine's queue, but not while any machine
that may run it has room: steps 1 to 4 ask one machine a pool, and ``_go_on`` asks the others.
Nobody is moved here: ``enacting`` does so.
"""

from typing import Final

from splitwise.scheduling.cluster_state import (
    ClusterState,
    has_room,
    is_memory_full,
    is_queue_long,
    room_tokens,
)
from splitwise.scheduling.pool import Pool
from splitwise.scheduling.ranking import NOBODY, OUT, Ranking, first, first_of_leaves
from splitwise.scheduling.shared import shared

PROMPT_QUEUE_THRESHOLD_TOKENS: Final = 8192
"""Pending tokens past which a prompt queue counts as long (the public simulator's value)."""
_PROMPT: Final = int(Pool.PROMPT)
_TOKEN: Final = int(Pool.TOKEN)
_MIXED: Final = int(Pool.MIXED)
"""Plain numbers, which numpy and numba take faster than members of an enum."""


@shared
def can_serve(cluster: ClusterState) -> bool:
    """Whether anybody can be found: left alone, a machine of any pool computes both phases."""
    return (
        first(cluster.by_pending, _PROMPT) != NOBODY
        or first(cluster.by_pending, _TOKEN) != NOBODY
        or first(cluster.by_pending, _MIXED) != NOBODY
    )


@shared
def could_hold(cluster: ClusterState, kv_tokens: int) -> bool:
    """Whether a machine that takes requests has so large a cache, however full it is now."""
    return (
        _roomiest(cluster, _PROMPT, kv_tokens) != NOBODY
        or _roomiest(cluster, _TOKEN, kv_tokens) != NOBODY
        or _roomiest(cluster, _MIXED, kv_tokens) != NOBODY
    )


@shared
def is_beyond_all(cluster: ClusterState, kv_tokens: int) -> bool:
    """Whether machines are there, but none that could hold so much: who needs it is to wait apart
    for another machine, and hold up nobody (``waiting``)."""
    return can_serve(cluster) and not could_hold(cluster, kv_tokens)


@shared
def choose_with_room(
    cluster: ClusterState,
    prompt_tokens: int,
    kv_tokens: int,
    one_token: bool,
    threshold: int,
    may_pull: bool,
) -> tuple[int, int, bool]:
    """``choose`` for a server, whose clients can wait: NOBODY twice for one that has to.

    It has to if no token machine holds ``kv_tokens`` more now, or every prompt machine's queue is
    long: what lies there can no more be overtaken. ``kv_tokens`` is what is known to be needed: the
    prompt and a first token. ``one_token`` says that the request ends with that and so has no token
    phase.
    """
    prompt, token, is_pair = choose(cluster, prompt_tokens, kv_tokens, threshold, may_pull)
    is_refused = prompt == NOBODY or is_queue_long(cluster, prompt, prompt_tokens, threshold)
    if is_refused or not (one_token or has_room(cluster, token, kv_tokens)):
        return _go_on(cluster, prompt_tokens, kv_tokens, one_token, threshold, may_pull)
    return prompt, token, is_pair


@shared
def choose(
    cluster: ClusterState, prompt_tokens: int, kv_tokens: int, threshold: int, may_pull: bool
) -> tuple[int, int, bool]:
    """Find (prompt machine, token machine) and change nothing.

    The third value says that steps 1 to 3 found both; one that stands in the opposite pool is then
    to be pulled. A machine that computes both phases by step 4 stays in its pool.
    """
    prompt, token = _choose_pair(cluster, prompt_tokens, kv_tokens, threshold, may_pull)
    if prompt != NOBODY and token != NOBODY:
        return prompt, token, True
    alone = _least_pending_of_all(cluster, prompt_tokens, kv_tokens, threshold)
    return alone, alone, False


@shared
def _choose_pair(
    cluster: ClusterState, prompt_tokens: int, kv_tokens: int, threshold: int, may_pull: bool
) -> tuple[int, int]:
    """Steps 1 to 3."""
    prompt_kv = prompt_tokens + 1
    prompt = _least_pending(cluster, _PROMPT, prompt_tokens, prompt_kv, threshold)
    token = _roomiest(cluster, _TOKEN, kv_tokens)
    if prompt == NOBODY and token == NOBODY:
        alone = _least_pending(cluster, _MIXED, prompt_tokens, kv_tokens, threshold)
        return alone, alone
    if prompt == NOBODY or is_queue_long(cluster, prompt, prompt_tokens, threshold):
        prompt = _least_pending(cluster, _MIXED, prompt_tokens, prompt_kv, threshold)
        if prompt != NOBODY and is_queue_long(cluster, prompt, prompt_tokens, threshold):
            prompt = NOBODY
    if token == NOBODY or is_memory_full(cluster, token, kv_tokens):
        token = _roomiest(cluster, _MIXED, kv_tokens)
        if token != NOBODY and is_memory_full(cluster, token, kv_tokens):
            token = NOBODY
    if prompt == NOBODY:
        pool = _TOKEN if may_pull else _PROMPT
        prompt = _least_pending(cluster, pool, prompt_tokens, prompt_kv, threshold)
        if prompt == NOBODY and not may_pull:
            prompt = _least_pending(cluster, _MIXED, prompt_tokens, prompt_kv, threshold)
    if token == NOBODY:
        token = _roomiest(cluster, _PROMPT if may_pull else _TOKEN, kv_tokens)
        if token == NOBODY and not may_pull:
            token = _roomiest(cluster, _MIXED, kv_tokens)
    return prompt, token


@shared
def _least_pending(
    cluster: ClusterState, pool: int, prompt_tokens: int, kv_tokens: int, threshold: int
) -> int:
    """The pool's least pending machine that could hold ``kv_tokens``, if it need not give way."""
    least = _first_that_holds(cluster, cluster.by_pending, pool, kv_tokens)
    if least == NOBODY or has_room(cluster, least, kv_tokens):
        return least
    roomiest = first(cluster.by_kv, pool)
    return _larger_or(cluster, least, roomiest, prompt_tokens, kv_tokens, threshold)


@shared
def _least_pending_of_all(
    cluster: ClusterState, prompt_tokens: int, kv_tokens: int, threshold: int
) -> int:
    """The same of all pools; of equals prompt before mixed before token."""
    least, roomiest = NOBODY, NOBODY
    for pool in (_PROMPT, _MIXED, _TOKEN):
        one = _first_that_holds(cluster, cluster.by_pending, pool, kv_tokens)
        if least == NOBODY or (
            one != NOBODY and cluster.pending_tokens[one] < cluster.pending_tokens[least]
        ):
            least = one
        one = first(cluster.by_kv, pool)
        if roomiest == NOBODY or (
            one != NOBODY and room_tokens(cluster, one) > room_tokens(cluster, roomiest)
        ):
            roomiest = one
    if least == NOBODY or has_room(cluster, least, kv_tokens):
        return least
    return _larger_or(cluster, least, roomiest, prompt_tokens, kv_tokens, threshold)


@shared
def _larger_or(
    cluster: ClusterState,
    full: int,
    roomiest: int,
    prompt_tokens: int,
    kv_tokens: int,
    threshold: int,
) -> int:
    """Who goes before a machine that is full: one that is larger, has room and no long queue."""
    capacity_tokens = cluster.kv_capacity_tokens
    if (
        cluster.is_sized[roomiest]
        and capacity_tokens[roomiest] > capacity_tokens[full]
        and has_room(cluster, roomiest, kv_tokens)
        and not is_queue_long(cluster, roomiest, prompt_tokens, threshold)
    ):
        return roomiest
    return full


@shared
def _roomiest(cluster: ClusterState, pool: int, kv_tokens: int) -> int:
    """The machine with the most room of the pool's that could hold ``kv_tokens``."""
    return _first_that_holds(cluster, cluster.by_kv, pool, kv_tokens)


@shared
def _first_that_holds(cluster: ClusterState, ranking: Ranking, pool: int, kv_tokens: int) -> int:
    """The first in the ranking of those whose cache could ever hold ``kv_tokens``."""
    best = first(ranking, pool)
    if best == NOBODY or cluster.kv_capacity_tokens[best] >= kv_tokens:
        return best
    size = ranking.key.shape[1]
    holding, beyond = 0, len(cluster.up)
    while holding < beyond:  # the largest stand first
        middle = (holding + beyond) // 2
        if cluster.kv_capacity_tokens[ranking.winner[pool, size + middle]] >= kv_tokens:
            holding = middle + 1
        else:
            beyond = middle
    return first_of_leaves(ranking, pool, holding)


@shared
def _go_on(
    cluster: ClusterState,
    prompt_tokens: int,
    kv_tokens: int,
    one_token: bool,
    threshold: int,
    may_pull: bool,
) -> tuple[int, int, bool]:
    """Who takes a request that is refused by those whom ``choose`` found: anybody that may run it
    by steps 1 to 4 and has room, and a queue that is not long. Says it as ``choose`` does."""
    prompt_kv = prompt_tokens + 1
    alone = _pool_of_both(cluster, prompt_kv, kv_tokens, may_pull)
    if alone != NOBODY and one_token:
        machine = _with_short_queue(cluster, alone, prompt_tokens, kv_tokens, threshold)
        return machine, machine, False
    if alone != NOBODY:
        machine = _with_room_for_both(cluster, alone, prompt_tokens, kv_tokens, threshold)
        return machine, machine, False
    prompt = _with_short_queue(cluster, _PROMPT, prompt_tokens, prompt_kv, threshold)
    if prompt == NOBODY:
        prompt = _with_short_queue(cluster, _MIXED, prompt_tokens, prompt_kv, threshold)
    if prompt == NOBODY and may_pull:
        prompt = _with_short_queue(cluster, _TOKEN, prompt_tokens, prompt_kv, threshold)
    if one_token or prompt == NOBODY:
        return prompt, prompt, True
    token = _with_room(cluster, _TOKEN, kv_tokens)
    if token == NOBODY:
        token = _with_room(cluster, _MIXED, kv_tokens)
    if token == NOBODY and may_pull:
        token = _with_room(cluster, _PROMPT, kv_tokens)
    if token == NOBODY:
        return NOBODY, NOBODY, False
    return prompt, token, True


@shared
def _pool_of_both(cluster: ClusterState, prompt_kv: int, kv_tokens: int, may_pull: bool) -> int:
    """The pool whose machines compute both phases, as no others are left for one; else NOBODY."""
    no_prompt = _first_that_holds(cluster, cluster.by_pending, _PROMPT, prompt_kv) == NOBODY
    no_token = _first_that_holds(cluster, cluster.by_pending, _TOKEN, kv_tokens) == NOBODY
    if no_prompt and no_token:
        return _MIXED
    if may_pull:
        return NOBODY
    if no_prompt and _first_that_holds(cluster, cluster.by_pending, _MIXED, prompt_kv) == NOBODY:
        return _TOKEN
    if no_token and _first_that_holds(cluster, cluster.by_pending, _MIXED, kv_tokens) == NOBODY:
        return _PROMPT
    return NOBODY


@shared
def _with_short_queue(
    cluster: ClusterState, pool: int, prompt_tokens: int, kv_tokens: int, threshold: int
) -> int:
    """A machine of the pool whose queue is not long: the least pending, or one with none."""
    machine = _least_pending(cluster, pool, prompt_tokens, kv_tokens, threshold)
    if machine != NOBODY and is_queue_long(cluster, machine, prompt_tokens, threshold):
        machine = _first_that_holds(cluster, cluster.by_queue, pool, kv_tokens)
    return machine


@shared
def _with_room(cluster: ClusterState, pool: int, kv_tokens: int) -> int:
    """A machine of the pool that has room: if any has, the roomiest."""
    machine = first(cluster.by_kv, pool)
    if machine != NOBODY and not has_room(cluster, machine, kv_tokens):
        return NOBODY
    return machine


@shared
def _with_room_for_both(
    cluster: ClusterState, pool: int, prompt_tokens: int, kv_tokens: int, threshold: int
) -> int:
    """A machine of the pool with room and a queue that is not long, the largest first.

    The rankings have the same leaves, so that together they say which subtrees have none.
    """
    by_kv, by_pending, by_queue = cluster.by_kv, cluster.by_pending, cluster.by_queue
    node, leaves = 1, by_kv.key.shape[1]
    while node > 0:
        roomiest = by_kv.winner[pool, node]
        may_hold = by_kv.key[pool, roomiest] != OUT and has_room(cluster, roomiest, kv_tokens)
        if may_hold and is_queue_long(
            cluster, by_pending.winner[pool, node], prompt_tokens, threshold
        ):
            may_hold = by_queue.key[pool, by_queue.winner[pool, node]] != OUT
        if may_hold and node >= leaves:
            return int(roomiest)
        if may_hold:
            node *= 2
            continue
        while node % 2 == 1:
            node //= 2
        if node > 0:
            node += 1
    return NOBODY
