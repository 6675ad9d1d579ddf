"""What a process says, which need not have lines, be text, or end, cut into lines."""

from typing import Final

LINE_LIMIT_BYTES: Final = 16 * 1024
CHUNK_BYTES: Final = 64 * 1024
"""To be read at a time."""


class Lines:
    """Cuts bytes into lines of at most ``LINE_LIMIT_BYTES``; the rest of a longer one is lost."""

    def __init__(self) -> None:
        self._begun = bytearray()
        self._is_cut = False
        """Whether the line that is begun has been given out already, without its end."""

    def feed(self, chunk: bytes) -> list[str]:
        """The lines that end in ``chunk`` or become too long in it."""
        *ends, begun = chunk.split(b"\n")
        lines = [line for end in ends for line in (*self._add(end), *self._end())]
        return lines + self._add(begun)

    def rest(self) -> list[str]:
        """The line that was begun and never ended."""
        return self._end() if self._begun else []

    def _add(self, part: bytes) -> list[str]:
        if self._is_cut:
            return []
        room = LINE_LIMIT_BYTES - len(self._begun)
        self._begun += part[:room]
        if len(part) <= room:
            return []
        line = f"{_text(self._begun)} ... (cut at {LINE_LIMIT_BYTES} bytes)"
        self._begun.clear()
        self._is_cut = True
        return [line]

    def _end(self) -> list[str]:
        line, was_cut = _text(self._begun), self._is_cut
        self._begun.clear()
        self._is_cut = False
        return [] if was_cut else [line]


def _text(line: bytearray) -> str:
    return line.decode(errors="replace").rstrip()
