"""Who is served next of those that wait, and who has to go when too many do.

1. Priorities are strict: the lowest number goes first.
2. Within a priority those that were started before, and lost their machine, go before all others,
   oldest first: their clients have seen tokens already. They are not charged for it.
3. Then clients share what is served, by prompt and output tokens: the client that was served least
   goes next, its own requests in their order. A client that begins to wait counts as served no
   less than the one served last, so that nobody saves up a claim. (The virtual token counter of
   Sheng et al., *Fairness in Serving Large Language Models*, OSDI 2024, which is start-time fair
   queueing, Goyal, Vin and Cheng, SIGCOMM 1996, with output charged as it comes.)
   A policy that says in which ``order`` they go takes the place of the shares (``ordered_level``).
4. Where too many wait, the lowest priority gives way first, in it the client with most requests,
   and of these the newest. A newcomer that would itself be that one is refused (``to_displace``).

Counters live as long as anybody waits at their priority: while nobody does there is nothing to be
shared, and nothing is counted. Whoever takes a new name for every request is always served least:
names are for the caller to check. Every step costs O(log n), on average over many.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from typing import Generic

from splitwise.scheduling.fair_level import Level, T
from splitwise.scheduling.ordered_level import OrderedLevel


class FairQueue(Generic[T]):
    """What waits for a machine."""

    def __init__(self, order: Callable[[T], float] | None = None) -> None:
        """``order``: the least goes first, then age, of those of a priority that were never
        started; None: clients share. It is asked once for each that comes to wait."""
        self._order = order
        self._levels: dict[int, Level[T]] = {}
        self._priorities: list[int] = []
        self._length = 0
        self.prompt_tokens = 0
        """Of all that wait."""

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        """All that wait, in no order."""
        for level in self._levels.values():
            yield from level

    @property
    def has_next(self) -> bool:
        """Whether somebody waits that does not stand aside."""
        return any(self._levels.values())

    def first(self) -> T:
        """Who is next; there must be somebody."""
        return next(
            level for priority in self._priorities if (level := self._levels[priority])
        ).first()

    def set_aside(self, waiter: T) -> None:
        """Let those behind ``first`` come to the front, until it is ``put_back``."""
        self._levels[waiter.priority].set_aside(waiter)

    def put_back(self, waiter: T) -> None:
        """End the standing aside of one; of several the last goes back first."""
        self._levels[waiter.priority].put_back(waiter)

    def add(self, waiter: T) -> None:
        """Have a request wait that does not yet."""
        level = self._levels.get(waiter.priority)
        if level is None:
            level = self._levels[waiter.priority] = self._new_level()
            insort(self._priorities, waiter.priority)
        level.add(waiter)
        self._length += 1
        self.prompt_tokens += waiter.prompt_tokens

    def remove(self, waiter: T) -> None:
        """Take out a request that is wanted no more."""
        level = self._levels[waiter.priority]
        level.remove(waiter)
        self._left(waiter, level)

    def start(self, waiter: T) -> None:
        """``first`` gets its machines; its client is charged for the prompt, once."""
        level = self._levels[waiter.priority]
        level.start(waiter)
        waiter.was_started = True
        self._left(waiter, level)

    def serve(self, waiter: T, tokens: int) -> None:
        """A request got this much output."""
        level = self._levels.get(waiter.priority)
        if level is not None:
            level.serve(waiter.client, tokens)

    def to_displace(self, client: str, priority: int) -> T | None:
        """Who has to go if the queue is full and a newcomer is to come in; None if it may not.

        It is somebody who was never started, of a lower priority; or of the same, of a client that
        has more requests there than the newcomer's client would have.
        """
        for lowest in reversed(self._priorities):
            if lowest < priority:
                return None
            level = self._levels[lowest]
            is_same = lowest == priority
            waiter = level.to_displace(level.length(client) + 1 if is_same else 0)
            if waiter is not None:
                return waiter
        return None

    def _new_level(self) -> Level[T]:
        return Level() if self._order is None else OrderedLevel(self._order)

    def _left(self, waiter: T, level: Level[T]) -> None:
        self._length -= 1
        self.prompt_tokens -= waiter.prompt_tokens
        if not (level or level.aside):
            del self._levels[waiter.priority]
            del self._priorities[bisect_left(self._priorities, waiter.priority)]
