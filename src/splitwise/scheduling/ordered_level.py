"""All that wait at one priority where a policy says in which order they go.

Who was started before goes first here, too, and who has to go when too many wait is the same: the
clients' lines are kept for that. What they were served counts for nothing.
"""

from collections.abc import Callable

from splitwise.scheduling.fair_level import Level, T
from splitwise.scheduling.keyed_heap import Key, KeyedHeap


class OrderedLevel(Level[T]):
    """Those that were never started by ``order``, the least first, then by age."""

    def __init__(self, order: Callable[[T], float]) -> None:
        super().__init__()
        self._order = order
        self._keys: dict[T, Key] = {}
        """Of those that were never started, the ones that stand aside among them."""
        self._ordered: KeyedHeap[T] = KeyedHeap()

    def __bool__(self) -> bool:
        return bool(self._started) or bool(self._ordered)

    def first(self) -> T:
        return self._started.first() if self._started else self._ordered.first()

    def add(self, waiter: T) -> None:
        super().add(waiter)
        if not waiter.was_started:
            self._keys[waiter] = (self._order(waiter), waiter.number)
            self._ordered.set(waiter, self._keys[waiter])

    def remove(self, waiter: T) -> None:
        super().remove(waiter)
        if not waiter.was_started:
            del self._keys[waiter]
            self._ordered.remove(waiter)

    def set_aside(self, waiter: T) -> None:
        """It keeps its place in its client's line, which need not be the first."""
        if waiter.was_started:
            super().set_aside(waiter)
            return
        self.aside += 1
        self._ordered.remove(waiter)

    def put_back(self, waiter: T) -> None:
        if waiter.was_started:
            super().put_back(waiter)
            return
        self.aside -= 1
        self._ordered.set(waiter, self._keys[waiter])
