"""Cluster-level scheduling with role changes, on rankings instead of scans.

The rule (Splitwise, section IV.A and IV.B; thresholds as in the authors' public simulator):

1. Prompt: the least pending machine of the prompt pool, else of the mixed pool; refused if its
   queue is not empty and would pass the threshold.
2. Tokens: the machine of the token pool with the least cache promised, else of the mixed pool;
   refused if the request's whole cache does not fit.
3. Refused everywhere, a machine of the opposite pool is pulled into the mixed pool. It keeps its
   home and returns (``go_home``) when nothing is left there, nor promised to it.
4. Still nobody: one machine, the least pending of all, computes both phases.
5. A request that can never fit the machines so chosen goes to the one with the most cache, else
   it would block a queue for ever.

Where machines may not be pulled (a static split), a phase waits for those that run it, however long
their queue or full their memory, and step 4 is for a phase that no machine is left for.

A cluster whose machines all live in the mixed pool has no phases to split: the least pending
machine computes both (the baseline).

``choose`` looks, ``place`` also pulls, ``place_if_room`` lets a request wait instead. Whoever
changes a machine's numbers calls ``rank``.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitwise.scheduling.pool import Pool
from splitwise.scheduling.ranking import NOBODY, OUT, Ranking, first, new_ranking, set_key
from splitwise.scheduling.shared import shared

PROMPT_QUEUE_THRESHOLD_TOKENS: Final = 8192
"""Pending tokens past which a prompt queue counts as long (the public simulator's value)."""


class ClusterState(NamedTuple):
    """What the cluster scheduler knows, one entry a machine, and two rankings with a row a pool.

    ``pending_tokens`` counts prompt tokens without a first token yet, and 1 a request in its token
    phase. ``waiting`` counts requests that lie in the machine's queue. ``kv_tokens`` is cache in
    use or promised. A machine that is ``draining`` ends what it has and gets nothing new.
    """

    home: NDArray[np.int8]
    pool: NDArray[np.int8]
    up: NDArray[np.bool_]
    draining: NDArray[np.bool_]
    pending_tokens: NDArray[np.int64]
    waiting: NDArray[np.int64]
    kv_tokens: NDArray[np.int64]
    kv_capacity_tokens: NDArray[np.int64]
    role_changes: NDArray[np.int64]
    by_pending: Ranking
    by_kv: Ranking


def new_cluster(home: NDArray[np.int8], kv_capacity_tokens: NDArray[np.int64]) -> ClusterState:
    """Idle machines, each in its home pool."""
    count = len(home)

    def zeros() -> NDArray[np.int64]:
        return np.zeros(count, dtype=np.int64)

    cluster = ClusterState(
        home=home.astype(np.int8),
        pool=home.astype(np.int8),
        up=np.ones(count, dtype=np.bool_),
        draining=np.zeros(count, dtype=np.bool_),
        pending_tokens=zeros(),
        waiting=zeros(),
        kv_tokens=zeros(),
        kv_capacity_tokens=kv_capacity_tokens.astype(np.int64),
        role_changes=zeros(),
        by_pending=new_ranking(len(Pool), count),
        by_kv=new_ranking(len(Pool), count),
    )
    for machine in range(count):
        rank(cluster, machine)
    return cluster


def read_singly(cluster: ClusterState) -> ClusterState:
    """The same numbers, for Python that looks at one entry at a time.

    Memoryviews give plain numbers in a third of the time that numpy takes; ``np.asarray`` makes
    arrays of them again.
    """
    return ClusterState._make(
        Ranking._make(map(_view, part)) if isinstance(part, Ranking) else _view(part)
        for part in cluster
    )


def _view(array: Any) -> Any:
    return memoryview(array)


def with_machine(cluster: ClusterState, pool: Pool, kv_capacity_tokens: int) -> ClusterState:
    """The same machines with what they do, and one more, idle, at the end."""
    grown = new_cluster(
        np.append(cluster.home, np.int8(pool)),
        np.append(cluster.kv_capacity_tokens, kv_capacity_tokens),
    )
    for machine in range(len(cluster.home)):
        _set_keys(grown, machine, OUT, OUT)  # it may stand in another pool than at home
        grown.pool[machine] = cluster.pool[machine]
        grown.up[machine] = cluster.up[machine]
        grown.draining[machine] = cluster.draining[machine]
        grown.pending_tokens[machine] = cluster.pending_tokens[machine]
        grown.waiting[machine] = cluster.waiting[machine]
        grown.kv_tokens[machine] = cluster.kv_tokens[machine]
        grown.role_changes[machine] = cluster.role_changes[machine]
        rank(grown, machine)
    return grown


def take_out(cluster: ClusterState, machine: int) -> None:
    """A machine is lost: nobody is placed on it."""
    cluster.up[machine] = False
    rank(cluster, machine)


def bring_back(cluster: ClusterState, machine: int, pool: Pool, kv_capacity_tokens: int) -> None:
    """A machine that was lost is up again, idle, in its (perhaps new) home pool."""
    cluster.home[machine] = pool
    cluster.pool[machine] = pool
    cluster.pending_tokens[machine] = 0
    cluster.waiting[machine] = 0
    cluster.kv_tokens[machine] = 0
    cluster.kv_capacity_tokens[machine] = kv_capacity_tokens
    cluster.up[machine] = True
    cluster.draining[machine] = False
    rank(cluster, machine)


def set_draining(cluster: ClusterState, machine: int, draining: bool) -> None:
    """Place nothing new on a machine that goes on with what it has; or do so again."""
    cluster.draining[machine] = draining
    rank(cluster, machine)


def set_home(cluster: ClusterState, machine: int, pool: Pool) -> None:
    """Give a machine another home pool. It stands there at once, with what it still runs:
    whatever phase that is in, it ends there as it would have."""
    if cluster.home[machine] == pool:
        return
    cluster.home[machine] = pool
    if cluster.pool[machine] != pool:
        move(cluster, machine, pool)


def can_serve(cluster: ClusterState) -> bool:
    """Whether ``place`` finds anybody: left alone, a machine of any pool computes both phases."""
    return least_pending(cluster) != NOBODY


@shared
def takes_requests(cluster: ClusterState, machine: int) -> bool:
    """Whether anything may be placed on the machine."""
    return bool(cluster.up[machine] and not cluster.draining[machine])


@shared
def rank(cluster: ClusterState, machine: int) -> None:
    """Enter the machine's present load in its pool's rankings."""
    pending, kv = OUT, OUT
    if takes_requests(cluster, machine):
        pending = float(cluster.pending_tokens[machine])
        kv = float(cluster.kv_tokens[machine])
    _set_keys(cluster, machine, pending, kv)


@shared
def move(cluster: ClusterState, machine: int, pool: int) -> None:
    """Put the machine into another pool's rankings; every role change passes here."""
    _set_keys(cluster, machine, OUT, OUT)
    cluster.pool[machine] = pool
    cluster.role_changes[machine] += 1
    rank(cluster, machine)


@shared
def _set_keys(cluster: ClusterState, machine: int, pending: float, kv: float) -> None:
    pool = cluster.pool[machine]
    set_key(cluster.by_pending, pool, machine, pending)
    set_key(cluster.by_kv, pool, machine, kv)


@shared
def go_home(cluster: ClusterState, machine: int) -> None:
    """A machine with nothing to do, promised or still to send returns to the pool it was pulled
    from."""
    if cluster.pool[machine] != cluster.home[machine] and is_idle(cluster, machine):
        move(cluster, machine, cluster.home[machine])


@shared
def is_idle(cluster: ClusterState, machine: int) -> bool:
    """Whether nothing runs, waits or is promised on the machine."""
    return bool(
        cluster.pending_tokens[machine] == 0
        and cluster.waiting[machine] == 0
        and cluster.kv_tokens[machine] == 0
    )


@shared
def is_queue_long(cluster: ClusterState, machine: int, prompt_tokens: int, threshold: int) -> bool:
    """Whether the prompt would push a queue that is not empty past the threshold."""
    pending = cluster.pending_tokens[machine] + prompt_tokens
    return bool(cluster.waiting[machine] > 0 and pending > threshold)


@shared
def is_memory_full(cluster: ClusterState, machine: int, kv_tokens: int) -> bool:
    """Whether the machine cannot promise ``kv_tokens`` more."""
    return bool(cluster.kv_tokens[machine] + kv_tokens >= cluster.kv_capacity_tokens[machine])


@shared
def place(
    cluster: ClusterState, prompt_tokens: int, kv_tokens: int, threshold: int, may_pull: bool
) -> tuple[int, int]:
    """Choose (prompt machine, token machine), pulling machines into the mixed pool if need be.

    ``kv_tokens`` is the whole cache of the request, prompt and output. (NOBODY, NOBODY) if no
    machine that is up can hold it.
    """
    prompt, token, is_pair = choose(cluster, prompt_tokens, kv_tokens, threshold, may_pull)
    if is_pair:
        pull(cluster, prompt, Pool.TOKEN)
        pull(cluster, token, Pool.PROMPT)
    return prompt, token


@shared
def place_if_room(
    cluster: ClusterState,
    prompt_tokens: int,
    kv_tokens: int,
    one_token: bool,
    threshold: int,
    may_pull: bool,
) -> tuple[int, int]:
    """``place`` for a server, whose clients can wait: (NOBODY, NOBODY) for one that has to.

    It has to if the chosen token machine does not hold ``kv_tokens`` more now, or the chosen prompt
    machine's queue is long: what lies there can no more be overtaken. Then nobody is pulled for it
    either. ``kv_tokens`` is what is known to be needed: the prompt and a first token. ``one_token``
    says that the request ends with that and so has no token phase.
    """
    prompt, token, is_pair = choose(cluster, prompt_tokens, kv_tokens, threshold, may_pull)
    if prompt == NOBODY or is_queue_long(cluster, prompt, prompt_tokens, threshold):
        return NOBODY, NOBODY
    if one_token:
        token = prompt
    elif cluster.kv_tokens[token] + kv_tokens > cluster.kv_capacity_tokens[token]:
        return NOBODY, NOBODY
    if is_pair:
        pull(cluster, prompt, Pool.TOKEN)
    if is_pair and not one_token:
        pull(cluster, token, Pool.PROMPT)
    return prompt, token


@shared
def choose(
    cluster: ClusterState, prompt_tokens: int, kv_tokens: int, threshold: int, may_pull: bool
) -> tuple[int, int, bool]:
    """Find (prompt machine, token machine) and change nothing.

    The third value says that steps 1 to 3 found both; one that stands in the opposite pool is then
    to be pulled. A machine that computes both phases by step 4 or 5 stays in its pool.
    """
    prompt, token = _choose_pair(cluster, prompt_tokens, kv_tokens, threshold, may_pull)
    is_pair = prompt != NOBODY and token != NOBODY
    if not is_pair:
        prompt = least_pending(cluster)
        token = prompt
    if prompt == NOBODY:
        return NOBODY, NOBODY, False
    capacity = cluster.kv_capacity_tokens
    if prompt_tokens + 1 > capacity[prompt] or kv_tokens > capacity[token]:
        alone = roomiest(cluster)
        if kv_tokens > capacity[alone]:
            return NOBODY, NOBODY, False
        return alone, alone, False
    return prompt, token, is_pair


@shared
def pull(cluster: ClusterState, machine: int, opposite: int) -> None:
    """Move a machine chosen for a phase that its pool, ``opposite``, does not run."""
    if int(cluster.pool[machine]) == opposite:  # numpy takes microseconds to compare with an enum
        move(cluster, machine, Pool.MIXED)


@shared
def _choose_pair(
    cluster: ClusterState, prompt_tokens: int, kv_tokens: int, threshold: int, may_pull: bool
) -> tuple[int, int]:
    """Steps 1 to 3."""
    prompt = first(cluster.by_pending, Pool.PROMPT)
    token = first(cluster.by_kv, Pool.TOKEN)
    if prompt == NOBODY and token == NOBODY:
        alone = first(cluster.by_pending, Pool.MIXED)
        return alone, alone
    if prompt == NOBODY or is_queue_long(cluster, prompt, prompt_tokens, threshold):
        prompt = first(cluster.by_pending, Pool.MIXED)
        if prompt != NOBODY and is_queue_long(cluster, prompt, prompt_tokens, threshold):
            prompt = NOBODY
    if token == NOBODY or is_memory_full(cluster, token, kv_tokens):
        token = first(cluster.by_kv, Pool.MIXED)
        if token != NOBODY and is_memory_full(cluster, token, kv_tokens):
            token = NOBODY
    if prompt == NOBODY:
        prompt = _relief(cluster.by_pending, Pool.PROMPT, Pool.TOKEN, may_pull)
    if token == NOBODY:
        token = _relief(cluster.by_kv, Pool.TOKEN, Pool.PROMPT, may_pull)
    return prompt, token


@shared
def _relief(ranking: Ranking, own: int, opposite: int, may_pull: bool) -> int:
    """Who takes what its own pool and the mixed one refuse."""
    if may_pull:
        return first(ranking, opposite)
    busy = first(ranking, own)
    return busy if busy != NOBODY else first(ranking, Pool.MIXED)


@shared
def least_pending(cluster: ClusterState) -> int:
    """The least pending machine of all pools; of equals prompt before mixed before token."""
    best = first(cluster.by_pending, Pool.PROMPT)
    for other in (first(cluster.by_pending, Pool.MIXED), first(cluster.by_pending, Pool.TOKEN)):
        if other == NOBODY:
            continue
        if best == NOBODY or cluster.pending_tokens[other] < cluster.pending_tokens[best]:
            best = other
    return best


@shared
def roomiest(cluster: ClusterState) -> int:
    """The machine that takes requests and holds the most cache, the first of equals."""
    best = NOBODY
    for machine in range(len(cluster.up)):
        if not takes_requests(cluster, machine):
            continue
        if best == NOBODY or (
            cluster.kv_capacity_tokens[machine] > cluster.kv_capacity_tokens[best]
        ):
            best = machine
    return best
