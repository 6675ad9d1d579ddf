"""What becomes of a placement: whether it can be, and whose pool changes for it."""

from enum import IntEnum
from numbers import Real
from operator import index
from typing import Any, Final

from splitwise.scheduling.cluster_state import ClusterState, has_room, is_idle, move, takes_requests
from splitwise.scheduling.decision import Placement, PlacementRequest, PlacementRules
from splitwise.scheduling.pool import Pool
from splitwise.scheduling.ranking import NOBODY
from splitwise.scheduling.shared import shared

_PROMPT: Final = int(Pool.PROMPT)
_TOKEN: Final = int(Pool.TOKEN)
_MIXED: Final = int(Pool.MIXED)
"""Plain numbers, which compiled code returns and compares."""


MAX_RANK: Final = 2**31 - 1


class Fault(IntEnum):
    """Why a placement cannot be; ``NONE`` if it can."""

    NONE = 0
    NO_SUCH_MACHINE = 1
    WAITS = 2
    DOWN = 3
    DRAINING = 4
    TOO_SMALL = 5
    MAY_NOT_PULL = 6


EXPLAINED: Final = {
    Fault.NO_SUCH_MACHINE: "machines are numbered from 0 to one less than there are",
    Fault.WAITS: "it has to wait for nothing; a machine is up that holds it, and "
    "either all are idle or its whole cache is promised beforehand (cache 'grown' lets it wait)",
    Fault.DOWN: "a machine that is down",
    Fault.DRAINING: "a machine that is draining",
    Fault.TOO_SMALL: "a machine whose cache can never hold it",
    Fault.MAY_NOT_PULL: "a machine of the other pool, where roles do not change",
}


_NONE: Final = int(Fault.NONE)
_NO_SUCH_MACHINE: Final = int(Fault.NO_SUCH_MACHINE)
_WAITS: Final = int(Fault.WAITS)
_DOWN: Final = int(Fault.DOWN)
_DRAINING: Final = int(Fault.DRAINING)
_TOO_SMALL: Final = int(Fault.TOO_SMALL)
_MAY_NOT_PULL: Final = int(Fault.MAY_NOT_PULL)


@shared
def in_one_place(request: PlacementRequest, placement: Placement) -> Placement:
    """The placement of a request that may have no token phase: its prompt's machine is all."""
    token = placement.prompt if request.one_token else placement.token
    return Placement(placement.prompt, token, placement.pulls)


@shared
def fault_of(
    cluster: ClusterState, request: PlacementRequest, rules: PlacementRules, placement: Placement
) -> int:
    """Why the machines cannot run the request, as a ``Fault``."""
    prompt, token = placement.prompt, placement.token
    if prompt == NOBODY and token == NOBODY:
        may_wait = rules.may_wait and _is_any_busy(cluster)
        return _NONE if may_wait or not _is_held_by_any(cluster, request.kv_tokens) else _WAITS
    fault = _fault_at(cluster, prompt, request.prompt_tokens + 1)
    if fault == _NONE:
        fault = _fault_at(cluster, token, request.kv_tokens)
    if fault != _NONE or rules.change_roles or not placement.pulls:
        return fault
    is_pulled = int(cluster.pool[prompt]) == _TOKEN
    if not request.one_token:
        is_pulled = is_pulled or int(cluster.pool[token]) == _PROMPT
    return _MAY_NOT_PULL if is_pulled else _NONE


@shared
def _fault_at(cluster: ClusterState, machine: int, kv_tokens: int) -> int:
    """Why one of the two machines cannot do its part."""
    if not 0 <= machine < len(cluster.up):
        return _NO_SUCH_MACHINE
    if not cluster.up[machine]:
        return _DOWN
    if cluster.draining[machine]:
        return _DRAINING
    if kv_tokens > cluster.kv_capacity_tokens[machine]:
        return _TOO_SMALL
    return _NONE


@shared
def _is_held_by_any(cluster: ClusterState, kv_tokens: int) -> bool:
    for machine in range(len(cluster.up)):
        if takes_requests(cluster, machine) and kv_tokens <= cluster.kv_capacity_tokens[machine]:
            return True
    return False


@shared
def _is_any_busy(cluster: ClusterState) -> bool:
    """Whether anything ends sooner or later, so that who waits is asked for again."""
    for machine in range(len(cluster.up)):
        if cluster.up[machine] and not is_idle(cluster, machine):
            return True
    return False


@shared
def has_to_wait(cluster: ClusterState, request: PlacementRequest, placement: Placement) -> bool:
    """Whether a request that may wait does: nobody was chosen for it, or one without room now. A
    token machine has room for all that it is charged, or machines that send each other caches could
    wait for each other in a circle."""
    if placement.prompt == NOBODY:
        return True
    return not (request.one_token or has_room(cluster, placement.token, request.kv_tokens))


@shared
def pull(cluster: ClusterState, placement: Placement, has_token_phase: bool) -> None:
    """Move machines chosen for a phase that their pools do not run into the mixed pool."""
    prompt, token = placement.prompt, placement.token
    if not placement.pulls:
        return
    if int(cluster.pool[prompt]) == _TOKEN:
        move(cluster, prompt, _MIXED)
    if has_token_phase and int(cluster.pool[token]) == _PROMPT:
        move(cluster, token, _MIXED)


def read_placement(said: Any) -> Placement:
    """What a policy said, as plain numbers.

    Raises:
        TypeError: it is no placement.
    """
    try:
        return Placement(index(said[0]), index(said[1]), bool(said[2]))
    except (TypeError, LookupError):
        raise TypeError(
            f"it said {said!r}; it must say Placement(prompt, token, pulls), with the numbers of "
            "two machines and whether they are pulled"
        ) from None


def read_rank(said: Any) -> int:
    """What a policy said of a victim, as a plain number.

    Raises:
        TypeError: it is none.
    """
    try:
        return as_rank(index(said))
    except TypeError:
        raise TypeError(
            f"it said {said!r}; it must say a whole number, the highest for who goes first"
        ) from None


def read_count(said: Any, prompts: int) -> int:
    """What a policy said of the prompts of a batch, as a plain number.

    Raises:
        TypeError: it is none.
        ValueError: it is not one of theirs.
    """
    try:
        count = index(said)
    except TypeError:
        raise TypeError(uncountable(said, prompts)) from None
    if not is_count(count, prompts):
        raise ValueError(uncountable(said, prompts))
    return count


@shared
def is_count(said: int, prompts: int) -> bool:
    """Whether so many of the prompts can go into a batch."""
    return 0 <= said <= prompts


def uncountable(said: Any, prompts: int) -> str:
    """Why they cannot."""
    return (
        f"it said {said!r}; it must say how many of prompt_tokens go in, a whole number from 0 to "
        f"{prompts}"
    )


def read_order(said: Any) -> float:
    """What a policy said of one that waits, as a plain number.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(said, Real):
        raise TypeError(f"it said {said!r}; it must say a number, the least for who goes first")
    return as_order(float(said))


@shared
def as_order(said: float) -> float:
    """A number that can be compared.

    Raises:
        TypeError: it is none.
    """
    if said != said:
        raise TypeError("it said nan; it must say a number, the least for who goes first")
    return said


@shared
def as_rank(said: int) -> int:
    """Within bounds that leave room for an order among equals."""
    return max(min(said, MAX_RANK), -MAX_RANK)
