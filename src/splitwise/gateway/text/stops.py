"""Where a text ends because it says a stop string.

A stop string may name special tokens (``<|im_end|>``), which a text usually does not show. Within
``StopFinder`` such a token is one character that no text has, a lone surrogate, so that it can be
found and held back like any other; it is never given out. Special tokens that no stop string of the
request names are not there at all: they separate nothing.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final

_FIRST_MARK: Final = 0xD800
_MARKS: Final = 0x800  # so many surrogates there are


class SpecialTexts:
    """The special tokens of a tokenizer, to be found in stop strings."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        """``ids`` by the tokens' texts."""
        self._ids = {text: token for text, token in ids.items() if text}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def marks_in(self, stops: Sequence[str]) -> dict[str, str]:
        """A mark for each special token's text that occurs in ``stops``."""
        texts = dict.fromkeys(text for stop in stops for text in self._pattern.findall(stop))
        return {text: chr(_FIRST_MARK + i) for i, text in enumerate(islice(texts, _MARKS))}

    def marked(self, stop: str, marks: Mapping[str, str]) -> str:
        """``stop`` with each special token as its mark."""
        return self._pattern.sub(lambda match: marks.get(match[0], match[0]), stop)

    def id_of(self, text: str) -> int:
        return self._ids[text]


class StopFinder:
    """Finds the first stop string to become complete; of several that end together, the longest.

    That rule depends on the text alone, so the answer is the same however it is cut into tokens
    and chunks.
    """

    def __init__(
        self, stops: Sequence[str], include_stop: bool = False, hidden: SpecialTexts | None = None
    ) -> None:
        """``hidden`` are special tokens that the text does not show."""
        self._stops = tuple(stops)
        self._include = include_stop
        marks = hidden.marks_in(stops) if hidden is not None else {}
        self.mark_of: dict[int, str] = {}
        """What a hidden token is in the text to ``push``; of those that a stop string names."""
        self._marked: dict[str, str] = {}
        """Stop strings that name hidden tokens, as they are looked for and as they were given."""
        if hidden is not None and marks:
            self.mark_of = {hidden.id_of(text): mark for text, mark in marks.items()}
            marked = {hidden.marked(stop, marks): stop for stop in stops}
            self._marked = {mark: stop for mark, stop in marked.items() if mark != stop}
        self._unmark = {ord(mark): None for mark in marks.values()}
        self._longest = max(map(len, (*self._stops, *self._marked)), default=0)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Take more text; give what can be shown. After ``found`` is set nothing more comes."""
        text = self._held + text
        if match := self._first_match(text):
            start, self.found = match
            self._held = ""
            if not self._include:
                return self._shown(text[:start])
            return self._shown(text[:start]) + self.found
        keep = self._undecided(text)
        self._held = text[keep:]
        return self._shown(text[:keep])

    def flush(self) -> str:
        """The text ended: what was held is no stop string."""
        held, self._held = self._held, ""
        return self._shown(held)

    def _shown(self, text: str) -> str:
        return text.translate(self._unmark) if self._unmark else text

    def _first_match(self, text: str) -> tuple[int, str] | None:
        """Where in ``text`` it begins, and the stop string as it was given."""
        matches = [
            (start + len(marked), start, stop)
            for marked, stop in self._marked.items()
            if (start := text.find(marked)) >= 0
        ]
        shown = self._shown(text)
        for stop in self._stops:
            if (start := shown.find(stop)) >= 0:
                first, last = self._place(text, shown, start, start + len(stop) - 1)
                matches.append((last + 1, first, stop))
        if not matches:
            return None
        _, start, stop = min(matches)
        return start, stop

    def _place(self, text: str, shown: str, first: int, last: int) -> tuple[int, int]:
        """Where two characters of what is shown stand in the text with its marks."""
        if len(shown) == len(text):
            return first, last
        places = [i for i, character in enumerate(text) if ord(character) not in self._unmark]
        return places[first], places[last]

    def _undecided(self, text: str) -> int:
        """Where the longest tail begins that some stop string starts with."""
        marks = len(text) - len(self._shown(text))
        for start in range(max(0, len(text) - marks - self._longest + 1), len(text)):
            tail = text[start:]
            if any(marked.startswith(tail) for marked in self._marked):
                return start
            shown = self._shown(tail)
            if shown and any(stop.startswith(shown) for stop in self._stops):
                return start
        return len(text)
