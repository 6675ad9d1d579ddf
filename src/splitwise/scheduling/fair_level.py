"""All that wait at one priority: those that were started before, and clients that share.

``fair_queue`` has the rules.
"""

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


class Level(Generic[T]):
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
