"""Who is tried next of those that wait for room, and what becomes of one for whom there is none.

1. Whoever waits stands in line as ``fair_queue`` or a policy's ``order`` has it. The line is gone
   through whenever something made room.
2. One who finds none holds up those behind it, but for much smaller ones of the same priority:
   these may pass one that is large, until together they have taken as much as that one needs
   (``may_pass``). So a large one holds up none that would not be in its way, and is itself held up
   by no more than its own size. All keep their places in line meanwhile.
3. One that no machine could hold at present, however empty, is parked and holds up nobody. It goes
   back in line when a machine has come that could.
"""

from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Final, Generic, NamedTuple

from splitwise.scheduling.fair_level import T
from splitwise.scheduling.fair_queue import FairQueue
from splitwise.scheduling.shared import shared

MAX_ASIDE: Final = 4
"""How many may be passed at a time: each is tried anew whenever something made room."""


class Turn(NamedTuple):
    """What says when a request of a priority is served. ``order`` is the policy's word on one that
    never had machines, ``number`` counts in order of arrival."""

    was_started: bool
    order: float
    number: int


@shared
def goes_before(one: Turn, other: Turn) -> bool:
    """Whether one of two requests of a priority is served before the other: who had machines before
    goes first, by age; then the others as the policy orders them. (Clients' shares are beside the
    point here: ``fair_queue`` has them.)"""
    if one.was_started != other.was_started:
        return one.was_started
    if not one.was_started and one.order != other.order:
        return one.order < other.order
    return one.number < other.number


@shared
def may_pass(tokens: int, ahead_tokens: int, passed_tokens: int, capacity_tokens: int) -> bool:
    """Whether a request of ``tokens`` may go before one of ``ahead_tokens`` that finds no room, and
    that others of ``passed_tokens`` in all have passed. The largest machine has a cache of
    ``capacity_tokens``: what takes less than a quarter of that need not wait for long."""
    is_large = 4 * ahead_tokens > capacity_tokens
    return is_large and 2 * tokens <= ahead_tokens and passed_tokens + tokens <= ahead_tokens


class Tried(Enum):
    """What became of one that was tried."""

    STARTED = auto()
    NO_ROOM = auto()
    NO_MACHINE = auto()
    """None that is there could hold it."""


class WaitingLine(Generic[T]):
    """All that wait for a machine."""

    def __init__(
        self,
        size_tokens: Callable[[T], int],
        capacity_tokens: Callable[[], int],
        order: Callable[[T], float] | None = None,
    ) -> None:
        """``size_tokens`` is the cache that one needs to begin with, ``capacity_tokens`` the
        largest machine's; ``order`` as in ``FairQueue``."""
        self._size_tokens = size_tokens
        self._capacity_tokens = capacity_tokens
        self._queue: FairQueue[T] = FairQueue(order)
        self._passed_tokens: dict[T, int] = {}
        """What those took that passed one who waits."""
        self._parked: dict[T, float] = {}
        """Those whom no machine could hold, and since when."""

    def __len__(self) -> int:
        return len(self._queue) + len(self._parked)

    def __iter__(self) -> Iterator[T]:
        """All that wait, in no order."""
        yield from self._queue
        yield from self._parked

    @property
    def is_clear(self) -> bool:
        """Whether a newcomer would pass nobody."""
        return not self._queue

    @property
    def prompt_tokens(self) -> int:
        """Of all that wait, but for those parked."""
        return self._queue.prompt_tokens

    def add(self, waiter: T) -> None:
        """Have a request wait that does not yet."""
        self._queue.add(waiter)

    def remove(self, waiter: T) -> None:
        """Take out a request that is wanted no more."""
        if waiter in self._parked:
            del self._parked[waiter]
            return
        self._passed_tokens.pop(waiter, None)
        self._queue.remove(waiter)

    def serve(self, waiter: T, tokens: int) -> None:
        """A request got this much output."""
        self._queue.serve(waiter, tokens)

    def to_displace(self, client: str, priority: int) -> T | None:
        """Who has to go if too many wait and a newcomer is to come in (``fair_queue``)."""
        return self._queue.to_displace(client, priority)

    def go_through(self, start: Callable[[T], Tried], now_s: float) -> list[T]:
        """Try those that wait, in order, as far as there may be room; returns those parked.

        ``start`` must not call anything here.
        """
        aside: list[T] = []
        parked: list[T] = []
        while self._queue.has_next and len(aside) <= MAX_ASIDE:
            waiter = self._queue.first()
            if not self._may_pass(waiter, aside):
                break
            match start(waiter):
                case Tried.STARTED:
                    self._start(waiter, aside)
                case Tried.NO_ROOM:
                    self._queue.set_aside(waiter)
                    aside.append(waiter)
                case Tried.NO_MACHINE:
                    self.remove(waiter)
                    self._parked[waiter] = now_s
                    parked.append(waiter)
        for waiter in reversed(aside):
            self._queue.put_back(waiter)
        return parked

    def _may_pass(self, waiter: T, aside: list[T]) -> bool:
        size_tokens = self._size_tokens(waiter) if aside else 0
        return all(
            other.priority == waiter.priority
            and may_pass(
                size_tokens,
                self._size_tokens(other),
                self._passed_tokens.get(other, 0),
                self._capacity_tokens(),
            )
            for other in aside
        )

    def _start(self, waiter: T, aside: list[T]) -> None:
        for other in aside:
            passed_tokens = self._passed_tokens.get(other, 0)
            self._passed_tokens[other] = passed_tokens + self._size_tokens(waiter)
        self._passed_tokens.pop(waiter, None)
        self._queue.start(waiter)

    # Those whom no machine could hold.

    def parked_since_s(self, waiter: T) -> float | None:
        """Since when no machine could hold one; None if any could."""
        return self._parked.get(waiter)

    def unpark(self, can_hold: Callable[[int], bool]) -> None:
        """Machines have changed: whom they can hold goes back in line."""
        for waiter in [one for one in self._parked if can_hold(self._size_tokens(one))]:
            del self._parked[waiter]
            self._queue.add(waiter)
