"""Token ids to text, a token at a time.

1. ``ByteLevelStream`` (GPT-2, Llama 3, Qwen, SmolLM) or ``DecoderStream`` (SentencePiece and
   others) turns each token into the text that is certain by now; bytes of a character that is
   not complete yet are held back.
2. ``StopFinder`` takes that text, holds back what may still become a stop string, and ends the
   text at the first stop string that becomes complete.

Joined over a whole output, the streams give exactly what the tokenizer's ``decode`` gives for it.
"""

import codecs
from collections.abc import Sequence
from typing import Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextStream(Protocol):
    """Text of one output as its tokens come."""

    def push(self, token: int) -> str:
        """The text that ``token`` makes certain: empty while a character is incomplete."""

    def flush(self) -> str:
        """What is still held: an incomplete character becomes U+FFFD, as in a full decode."""


class TokenBytes(dict[int, bytes]):
    """The bytes a byte-level token stands for; filled as tokens are met.

    Byte-level vocabularies write each byte as one printable character: bytes that print stand
    for themselves, the others follow from U+0100 on in order (Radford et al., GPT-2, 2019).
    A token with any other character is an added one and stands for its own UTF-8.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(0x100) if byte not in set(printable)]
        self._byte_of = {chr(byte): byte for byte in printable}
        self._byte_of |= {chr(0x100 + place): byte for place, byte in enumerate(others)}

    def __missing__(self, token: int) -> bytes:
        piece = self._tokenizer.id_to_token(token)
        if piece is None:  # an unused row of the output head: a full decode skips it too
            value = b""
        elif all(character in self._byte_of for character in piece):
            value = bytes(self._byte_of[character] for character in piece)
        else:
            value = piece.encode()
        self[token] = value
        return value


class ByteLevelStream:
    """Exact and constant-time a token: every token is a run of bytes."""

    def __init__(self, token_bytes: TokenBytes, skipped: frozenset[int]) -> None:
        self._bytes = token_bytes
        self._skipped = skipped
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        if token in self._skipped:
            return ""
        return self._utf8.decode(self._bytes[token])

    def flush(self) -> str:
        return self._utf8.decode(b"", True)


class DecoderStream:
    """Any other decoder, through the tokenizer library's own stream.

    A byte-fallback decoder turns a whole run of bytes into U+FFFD when any of them is invalid,
    also those already shown as a character. Text that was sent cannot be taken back, so the
    tokens since then are decoded by themselves and the stream goes on after them.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._shown: list[int] = []
        self._held: list[int] = []

    def push(self, token: int) -> str:
        self._held.append(token)
        try:
            text = self._stream.step(self._tokenizer, token)
        except Exception as error:
            # The library has no class of its own for this; its message is all there is.
            if "Invalid prefix" not in str(error):
                raise
            text = self._decode_held()
            self._stream = DecodeStream(self._held, self._skip)
        if not text:
            return ""
        self._shown, self._held = self._held, []
        return text

    def flush(self) -> str:
        if not self._held:
            return ""
        return self._decode_held()

    def _decode_held(self) -> str:
        """Text of the held tokens in their place: alone, a leading space could be stripped."""
        before = self._decode(self._shown)
        together = self._decode(self._shown + self._held)
        if together.startswith(before):
            return together[len(before) :]
        return self._decode(self._held)

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=self._skip))


class StopFinder:
    """Finds the first stop string to become complete; of several that end together, the longest.

    That rule depends on the text alone, so the answer is the same however it is cut into tokens
    and chunks.
    """

    def __init__(self, stops: Sequence[str], include_stop: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include_stop
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Take more text; give what can be shown. After ``found`` is set nothing more comes."""
        text = self._held + text
        if match := self._first_match(text):
            start, end = match
            self.found = text[start:end]
            self._held = ""
            return text[: end if self._include else start]
        keep = self._undecided(text)
        self._held = text[keep:]
        return text[:keep]

    def flush(self) -> str:
        """The text ended: what was held is no stop string."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, int] | None:
        best: tuple[int, int] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start < 0:
                continue
            end = start + len(stop)
            if best is None or (end, start) < (best[1], best[0]):
                best = (start, end)
        return best

    def _undecided(self, text: str) -> int:
        """Where the longest tail begins that some stop string starts with."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            tail = text[start:]
            if any(stop.startswith(tail) for stop in self._stops):
                return start
        return len(text)
