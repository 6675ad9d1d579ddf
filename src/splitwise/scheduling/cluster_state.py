"""What the cluster scheduler knows of its machines, and every way in which that changes.

Whoever changes a machine's numbers calls ``rank``. The machines stand in the rankings with the
largest cache first, so that those that could ever hold a request are a run of leaves.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitwise.scheduling.batching import UNBOUNDED_DECODES
from splitwise.scheduling.pool import Pool
from splitwise.scheduling.ranking import OUT, Ranking, new_ranking, rank_all, set_key
from splitwise.scheduling.shared import shared


class ClusterState(NamedTuple):
    """One entry a machine, and rankings with a row a pool.

    ``pending_tokens`` counts prompt tokens without a first token yet, and 1 a request in its token
    phase. ``waiting`` counts requests that lie in the machine's queue. ``kv_tokens`` is cache in
    use or promised. ``decodes`` counts requests that are in their token phase or placed for it; in
    one iteration the machine runs ``max_decodes`` at most, and beyond that others would only hold
    cache: a machine with so many is as full as one without cache left. A machine
    that is ``draining`` ends what it has and gets nothing new, for good or, in quarantine, for a
    while.

    ``by_pending`` has the least pending first; ``by_kv`` the machine with the most room, or, where
    its size does not count (``is_sized``), with the least cache in use or promised; ``by_queue``
    those in whose queue nothing lies, and nobody else.
    """

    home: NDArray[np.int8]
    pool: NDArray[np.int8]
    up: NDArray[np.bool_]
    draining: NDArray[np.bool_]
    is_sized: NDArray[np.bool_]
    pending_tokens: NDArray[np.int64]
    waiting: NDArray[np.int64]
    kv_tokens: NDArray[np.int64]
    kv_capacity_tokens: NDArray[np.int64]
    decodes: NDArray[np.int64]
    max_decodes: NDArray[np.int64]
    role_changes: NDArray[np.int64]
    by_pending: Ranking
    by_kv: Ranking
    by_queue: Ranking


def new_cluster(
    home: NDArray[np.int8],
    kv_capacity_tokens: NDArray[np.int64],
    is_sized: bool = True,
    max_decodes: int = UNBOUNDED_DECODES,
) -> ClusterState:
    """Idle machines, each in its home pool.

    ``is_sized`` False ranks machines by what they hold, whatever their size, as the authors'
    public simulator does.
    """
    count = len(home)

    def zeros() -> NDArray[np.int64]:
        return np.zeros(count, dtype=np.int64)

    cluster = ClusterState(
        home=home.astype(np.int8),
        pool=home.astype(np.int8),
        up=np.ones(count, dtype=np.bool_),
        draining=np.zeros(count, dtype=np.bool_),
        is_sized=np.full(count, is_sized),
        pending_tokens=zeros(),
        waiting=zeros(),
        kv_tokens=zeros(),
        kv_capacity_tokens=kv_capacity_tokens.astype(np.int64),
        decodes=zeros(),
        max_decodes=np.full(count, max_decodes, dtype=np.int64),
        role_changes=zeros(),
        by_pending=new_ranking(len(Pool), count),
        by_kv=new_ranking(len(Pool), count),
        by_queue=new_ranking(len(Pool), count),
    )
    _rank_all(cluster)
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


def read_only(cluster: ClusterState) -> ClusterState:
    """The same numbers, read singly as they change, for who is not to change them."""
    return ClusterState._make(
        Ranking._make(map(_locked, part)) if isinstance(part, Ranking) else _locked(part)
        for part in cluster
    )


def _locked(array: Any) -> Any:
    return memoryview(array).toreadonly()


def with_machine(
    cluster: ClusterState, pool: Pool, kv_capacity_tokens: int, spare: int = 0
) -> ClusterState:
    """The same machines with what they do, and one more, idle, at the end; behind it there are
    ``spare`` places in which nobody is up."""
    count = len(cluster.home)
    places = np.zeros(count + 1 + spare, dtype=np.int64)
    grown = new_cluster(places.astype(np.int8), places)
    grown.up[:] = False
    parts: Iterable[tuple[Any, Any]] = zip(grown, cluster, strict=True)
    for part, known in parts:
        if not isinstance(part, Ranking):
            part[:count] = known  # a machine may stand in another pool than at home
    _rank_all(grown)
    bring_back(grown, count, pool, kv_capacity_tokens)
    return grown


def first_machines(cluster: ClusterState, count: int) -> ClusterState:
    """The same numbers without the places behind the first ``count``, in which nobody is up."""
    return ClusterState._make(
        part if isinstance(part, Ranking) else part[:count] for part in cluster
    )


def take_out(cluster: ClusterState, machine: int) -> None:
    """A machine is lost: nobody is placed on it."""
    cluster.up[machine] = False
    rank(cluster, machine)


def bring_back(
    cluster: ClusterState,
    machine: int,
    pool: Pool,
    kv_capacity_tokens: int,
    max_decodes: int = UNBOUNDED_DECODES,
) -> None:
    """A machine that was lost is up again, idle, in its (perhaps new) home pool."""
    is_resized = cluster.kv_capacity_tokens[machine] != kv_capacity_tokens
    cluster.home[machine] = pool
    cluster.pool[machine] = pool
    cluster.pending_tokens[machine] = 0
    cluster.waiting[machine] = 0
    cluster.kv_tokens[machine] = 0
    cluster.kv_capacity_tokens[machine] = kv_capacity_tokens
    cluster.decodes[machine] = 0
    cluster.max_decodes[machine] = max_decodes
    cluster.up[machine] = True
    cluster.draining[machine] = False
    if is_resized and not _stands_in_order(cluster, machine):
        _rank_all(cluster)
    else:
        rank(cluster, machine)


def _stands_in_order(cluster: ClusterState, machine: int) -> bool:
    """Whether the machine stands between the right two: the largest first, of equals the first."""
    size, leaf = cluster.by_kv.key.shape[1], cluster.by_kv.leaf[machine]
    run = range(max(leaf - 1, 0), min(leaf + 2, len(cluster.up)))
    there = [cluster.by_kv.winner[0, size + at] for at in run]
    return there == sorted(there, key=lambda one: (-cluster.kv_capacity_tokens[one], one))


def set_draining(cluster: ClusterState, machine: int, draining: bool) -> None:
    """Place nothing new on a machine that goes on with what it has; or do so again."""
    cluster.draining[machine] = draining
    rank(cluster, machine)


@contextmanager
def left_out(cluster: ClusterState, machines: Iterable[int]) -> Iterator[None]:
    """Nothing is placed on these machines meanwhile."""
    closed = [machine for machine in machines if takes_requests(cluster, machine)]
    for machine in closed:
        set_draining(cluster, machine, True)
    try:
        yield
    finally:
        for machine in closed:
            set_draining(cluster, machine, False)


def set_home(cluster: ClusterState, machine: int, pool: Pool) -> None:
    """Give a machine another home pool. It stands there at once, with what it still runs:
    whatever phase that is in, it ends there as it would have."""
    if cluster.home[machine] == pool:
        return
    cluster.home[machine] = pool
    if cluster.pool[machine] != pool:
        move(cluster, machine, pool)


@shared
def takes_requests(cluster: ClusterState, machine: int) -> bool:
    """Whether anything may be placed on the machine."""
    return bool(cluster.up[machine] and not cluster.draining[machine])


@shared
def rank(cluster: ClusterState, machine: int) -> None:
    """Enter the machine's present load in its pool's rankings."""
    pending, kv, queue = OUT, OUT, OUT
    if takes_requests(cluster, machine):
        pending = float(cluster.pending_tokens[machine])
        kv = float(cluster.kv_tokens[machine])
        if cluster.decodes[machine] >= cluster.max_decodes[machine]:
            kv = max(kv, float(cluster.kv_capacity_tokens[machine]))
        if cluster.is_sized[machine]:
            kv -= float(cluster.kv_capacity_tokens[machine])
        if cluster.waiting[machine] == 0:
            queue = 0.0
    _set_keys(cluster, machine, pending, kv, queue)


@shared
def move(cluster: ClusterState, machine: int, pool: int) -> None:
    """Put the machine into another pool's rankings; every role change passes here."""
    _set_keys(cluster, machine, OUT, OUT, OUT)
    cluster.pool[machine] = pool
    cluster.role_changes[machine] += 1
    rank(cluster, machine)


@shared
def _set_keys(cluster: ClusterState, machine: int, pending: float, kv: float, queue: float) -> None:
    pool = cluster.pool[machine]
    # Most changes leave two of the three as they are, and a call costs more than a look.
    if cluster.by_pending.key[pool, machine] != pending:
        set_key(cluster.by_pending, pool, machine, pending)
    if cluster.by_kv.key[pool, machine] != kv:
        set_key(cluster.by_kv, pool, machine, kv)
    if cluster.by_queue.key[pool, machine] != queue:
        set_key(cluster.by_queue, pool, machine, queue)


def _rank_all(cluster: ClusterState) -> None:
    """``rank`` of every machine, as they stand anew, in the time of a few."""
    arrays = ClusterState._make(
        part if isinstance(part, Ranking) else np.asarray(part) for part in cluster
    )
    order = np.argsort(-arrays.kv_capacity_tokens, kind="stable")
    is_in = arrays.up & ~arrays.draining & (arrays.pool == np.arange(len(Pool))[:, None])
    capacity_tokens = arrays.kv_capacity_tokens
    is_full = (arrays.decodes >= arrays.max_decodes) & (arrays.kv_tokens < capacity_tokens)
    taken = np.where(is_full, capacity_tokens, arrays.kv_tokens)
    for ranking, key in (
        (cluster.by_pending, arrays.pending_tokens),
        (cluster.by_kv, taken - np.where(arrays.is_sized, capacity_tokens, 0)),
        (cluster.by_queue, np.where(arrays.waiting == 0, 0.0, OUT)),
    ):
        rank_all(ranking, order, np.where(is_in, key, OUT))


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
    """Whether the machine cannot promise ``kv_tokens`` more with some to spare."""
    if cluster.decodes[machine] >= cluster.max_decodes[machine]:
        return True
    return bool(cluster.kv_tokens[machine] + kv_tokens >= cluster.kv_capacity_tokens[machine])


@shared
def room_tokens(cluster: ClusterState, machine: int) -> int:
    """Cache that the machine has for newcomers."""
    left = int(cluster.kv_capacity_tokens[machine] - cluster.kv_tokens[machine])
    if cluster.decodes[machine] >= cluster.max_decodes[machine]:
        return min(left, 0)
    return left


@shared
def has_room(cluster: ClusterState, machine: int, kv_tokens: int) -> bool:
    """Whether the machine holds ``kv_tokens`` more now."""
    if cluster.decodes[machine] >= cluster.max_decodes[machine]:
        return False
    return bool(cluster.kv_tokens[machine] + kv_tokens <= cluster.kv_capacity_tokens[machine])
