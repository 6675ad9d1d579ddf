"""Who is served next of those that wait, and who has to go when too many do.

1. Priorities are strict: the lowest number goes first.
2. Within a priority those that were started before, and lost their machine, go before all others,
   oldest first: their clients have seen tokens already. They are not charged for it.
3. Then clients share what is served, by prompt and output tokens: the client that was served least
   goes next, its own requests in their order. A client that begins to wait counts as served no
   less than the one served last, so that nobody saves up a claim. (The virtual token counter of
   Sheng et al., *Fairness in Serving Large Language Models*, OSDI 2024, which is start-time fair
   queueing, Goyal, Vin and Cheng, SIGCOMM 1996, with output charged as it comes.)
4. Where too many wait, the lowest priority gives way first, in it the client with most requests,
   and of these the newest. A newcomer that would itself be that one is refused (``to_displace``).

Counters live as long as anybody waits at their priority: while nobody does there is nothing to be
shared, and nothing is counted. Whoever takes a new name for every request is always served least:
names are for the caller to check. Every step costs O(log n), on average over many.
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Final, Generic, Protocol, TypeVar

from splitwise.scheduling.keyed_heap import KeyedHeap

MAX_IDLE_CLIENTS: Final = 4096
"""Clients that do not wait, whose counters a priority remembers."""


class Waiter(Hashable, Protocol):
    """A request, over all its attempts."""

    number: int
    """In order of arrival; no two have the same."""
    was_started: bool
    """Whether it had machines before. The queue sets it."""

    @property
    def client(self) -> str:
        """Who shares with whom."""

    @property
    def priority(self) -> int:
        """Lower is earlier."""

    @property
    def prompt_tokens(self) -> int:
        """What the client is charged for its start."""


T = TypeVar("T", bound=Waiter)


class _Line(Generic[T]):
    """The requests of one client at one priority that were never started, in order."""

    def __init__(self) -> None:
        self.served_tokens = 0
        self.waiters: OrderedDict[T, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.waiters)

    def oldest(self) -> T:
        return next(iter(self.waiters))

    def newest(self) -> T:
        return next(reversed(self.waiters))


class _Level(Generic[T]):
    """All that wait at one priority."""

    def __init__(self) -> None:
        self.aside = 0
        """How many stand aside; they are in none of these."""
        self._started: KeyedHeap[T] = KeyedHeap()
        self._lines: dict[str, _Line[T]] = {}
        self._next: KeyedHeap[_Line[T]] = KeyedHeap()
        self._longest: KeyedHeap[_Line[T]] = KeyedHeap()
        self._served_last_tokens = 0
        """The counter of the client that was served last, before that; no line that waits has a
        lower one."""

    def __iter__(self) -> Iterator[T]:
        yield from self._started
        for line in self._next:
            yield from line.waiters

    def __bool__(self) -> bool:
        return bool(self._started) or bool(self._next)

    def first(self) -> T:
        return self._started.first() if self._started else self._next.first().oldest()

    def add(self, waiter: T) -> None:
        if waiter.was_started:
            self._started.set(waiter, (waiter.number,))
            return
        line = self._line(waiter.client)
        line.waiters[waiter] = None
        self._rank(line)

    def remove(self, waiter: T) -> None:
        if waiter.was_started:
            self._started.remove(waiter)
            return
        line = self._lines[waiter.client]
        del line.waiters[waiter]
        self._rank(line)

    def set_aside(self, waiter: T) -> None:
        self.aside += 1
        self.remove(waiter)

    def put_back(self, waiter: T) -> None:
        """Have one that stands aside, and was the first, stand where it stood."""
        self.aside -= 1
        if waiter.was_started:
            self.add(waiter)
            return
        line = self._lines[waiter.client]
        line.waiters[waiter] = None
        line.waiters.move_to_end(waiter, last=False)
        self._rank(line)

    def start(self, waiter: T) -> None:
        """Take out the first."""
        if not waiter.was_started:
            self._served_last_tokens = self._lines[waiter.client].served_tokens
            self.serve(waiter.client, waiter.prompt_tokens)
        self.remove(waiter)

    def serve(self, client: str, tokens: int) -> None:
        line = self._line(client)
        line.served_tokens += tokens
        if line:
            self._rank(line)

    def to_displace(self, shorter_than: int) -> T | None:
        """The newest of the longest line, if that has more than ``shorter_than``."""
        if not self._longest:
            return None
        line = self._longest.first()
        return line.newest() if len(line) > shorter_than else None

    def length(self, client: str) -> int:
        """How many of the client wait that were never started."""
        return len(self._lines.get(client, ()))

    def _line(self, client: str) -> _Line[T]:
        """The client's line, which is no further back than if it had been served until now."""
        line = self._lines.get(client)
        if line is None:
            self._forget_idle()
            line = self._lines[client] = _Line()
        if not line:
            line.served_tokens = max(line.served_tokens, self._served_last_tokens)
        return line

    def _rank(self, line: _Line[T]) -> None:
        """Put the line where its counter and its length have it stand."""
        if not line:
            self._next.remove(line)
            self._longest.remove(line)
            return
        number = line.oldest().number
        self._next.set(line, (line.served_tokens, number))
        self._longest.set(line, (-len(line), number))

    def _forget_idle(self) -> None:
        """Once twice as many idle clients are remembered as may be, forget those served least:
        they come next to a client that is new anyway."""
        if len(self._lines) - len(self._next) < 2 * MAX_IDLE_CLIENTS:
            return
        idle = [client for client, line in self._lines.items() if not line]
        idle.sort(key=lambda client: self._lines[client].served_tokens)
        for client in idle[:-MAX_IDLE_CLIENTS]:
            del self._lines[client]


class FairQueue(Generic[T]):
    """What waits for a machine."""

    def __init__(self) -> None:
        self._levels: dict[int, _Level[T]] = {}
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
            level = self._levels[waiter.priority] = _Level()
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

    def _left(self, waiter: T, level: _Level[T]) -> None:
        self._length -= 1
        self.prompt_tokens -= waiter.prompt_tokens
        if not (level or level.aside):
            del self._levels[waiter.priority]
            del self._priorities[bisect_left(self._priorities, waiter.priority)]
