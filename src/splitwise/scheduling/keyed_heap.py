"""A binary heap whose items may leave, or change their key, wherever they stand in it."""

from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heappush
from typing import Final, Generic, TypeVar

Key = tuple[float, ...]
Item = TypeVar("Item", bound=Hashable)

_SLACK: Final = 16
"""Outdated entries that are never worth a clearing."""


class KeyedHeap(Generic[Item]):
    """Items by key, the least first. No two items may have equal keys.

    A change leaves its old entry behind, which is dropped when it comes to the top; when outdated
    entries are the greater part, all are. So each step costs O(log n) on average over many.
    """

    def __init__(self) -> None:
        self._keys: dict[Item, Key] = {}
        self._entries: list[tuple[Key, Item]] = []

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._keys)

    def first(self) -> Item:
        """The item of the least key; there must be one."""
        while not self._is_current(self._entries[0]):
            heappop(self._entries)
        return self._entries[0][1]

    def set(self, item: Item, key: Key) -> None:
        """Put an item in, or change its key."""
        if self._keys.get(item) == key:
            return
        self._keys[item] = key
        heappush(self._entries, (key, item))
        self._clear()

    def remove(self, item: Item) -> None:
        """Take an item out; it must be in."""
        del self._keys[item]
        self._clear()

    def _is_current(self, entry: tuple[Key, Item]) -> bool:
        key, item = entry
        return self._keys.get(item) == key

    def _clear(self) -> None:
        if len(self._entries) <= 2 * len(self._keys) + _SLACK:
            return
        self._entries = [(key, item) for item, key in self._keys.items()]
        heapify(self._entries)
