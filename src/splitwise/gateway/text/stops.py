"""Where a text ends because it says a stop string.

A stop string may name special tokens (``<|im_end|>``), which a text usually does not show. In the
text that is searched such a token is one character that no text has, a lone surrogate: it is found
and held back like any other, and never given out. Special tokens that no stop string of the request
names are not there at all: they separate nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

_FIRST_MARK: Final = 0xD800
_MARKS: Final = 0x800  # so many surrogates there are


class SpecialTexts:
    """The special tokens of a tokenizer, to be found in stop strings."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        """``ids`` by the tokens' texts."""
        self._ids = {text: token for text, token in ids.items() if text}
        self._lengths: dict[str, list[int]] = {}
        """By the first character, longest first: there may be thousands of them, of few lengths."""
        for text in sorted(self._ids, key=len, reverse=True):
            lengths = self._lengths.setdefault(text[0], [])
            if len(text) not in lengths:
                lengths.append(len(text))

    def pieces(self, text: str) -> Iterator[tuple[str, int | None]]:
        """``text`` cut into special tokens, with their ids, and single characters, with None."""
        at = 0
        while at < len(text):
            piece = text[at]
            for length in self._lengths.get(piece, ()):
                if text[at : at + length] in self._ids:
                    piece = text[at : at + length]
                    break
            yield piece, self._ids.get(piece)
            at += len(piece)


class StopStrings:
    """The stop strings of a request, ready to be looked for in any number of texts."""

    def __init__(
        self, stops: Sequence[str], include_stop: bool = False, hidden: SpecialTexts | None = None
    ) -> None:
        """``hidden`` are special tokens that the text does not show; ``include_stop`` has the stop
        string that was found shown."""
        self.plain = tuple(stops)
        self.include = include_stop
        self.marked: dict[str, str] = {}
        """Stop strings that name hidden tokens, as they are looked for and as they were given."""
        self.mark_of: dict[int, str] = {}
        """What a hidden token is in the text to ``push``; of those that a stop string names."""
        if hidden is not None:
            self._mark(hidden)
        self.unmark = {ord(mark): None for mark in self.mark_of.values()}
        self.longest = max(map(len, (*self.plain, *self.marked)), default=0)

    def _mark(self, hidden: SpecialTexts) -> None:
        pieces = {stop: list(hidden.pieces(stop)) for stop in self.plain}
        named = dict.fromkeys(token for cut in pieces.values() for _, token in cut)
        tokens = islice((token for token in named if token is not None), _MARKS)
        self.mark_of = {token: chr(_FIRST_MARK + i) for i, token in enumerate(tokens)}
        for stop, cut in pieces.items():
            marked = "".join(
                self.mark_of.get(token, piece) if token is not None else piece
                for piece, token in cut
            )
            if marked != stop:
                self.marked[marked] = stop


class StopFinder:
    """Finds the first stop string to become complete; of several that end together, the longest.

    That rule depends on the text alone, so the answer is the same however it is cut into tokens
    and chunks.
    """

    def __init__(self, strings: StopStrings) -> None:
        self._strings = strings
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Take more text; give what can be shown. After ``found`` is set nothing more comes."""
        text = self._held + text
        if match := self._first_match(text):
            start, self.found = match
            self._held = ""
            if not self._strings.include:
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
        return text.translate(self._strings.unmark) if self._strings.unmark else text

    def _first_match(self, text: str) -> tuple[int, str] | None:
        """Where in ``text`` it begins, and the stop string as it was given."""
        matches = [
            (start + len(marked), start, stop)
            for marked, stop in self._strings.marked.items()
            if (start := text.find(marked)) >= 0
        ]
        shown = self._shown(text)
        for stop in self._strings.plain:
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
        unmark = self._strings.unmark
        places = [i for i, character in enumerate(text) if ord(character) not in unmark]
        return places[first], places[last]

    def _undecided(self, text: str) -> int:
        """Where the longest tail begins that some stop string starts with."""
        strings = self._strings
        marks = len(text) - len(self._shown(text))
        for start in range(max(0, len(text) - marks - strings.longest + 1), len(text)):
            tail = text[start:]
            if any(marked.startswith(tail) for marked in strings.marked):
                return start
            shown = self._shown(tail)
            if shown and any(stop.startswith(shown) for stop in strings.plain):
                return start
        return len(text)
