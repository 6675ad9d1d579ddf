"""Token ids to text, a token at a time.

1. ``ByteLevelStream`` (GPT-2, Llama 3, Qwen, SmolLM) or ``DecoderStream`` (SentencePiece and
   others) turns each token into the text that is certain by now; bytes of a character that is
   not complete yet are held back.
2. ``stops.StopFinder`` takes that text, holds back what may still become a stop string, and ends
   the text at the first stop string that becomes complete.

Joined over a whole output, the streams give exactly what the tokenizer's ``decode`` gives for
prompt and output, less what it gives for the prompt.
"""

import codecs
from collections.abc import Sequence
from itertools import islice
from typing import Final, Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_LONGEST_CHARACTER_BYTES: Final = 4
_BEYOND_ASCII: Final = 0x80
"""The first byte that is not a whole character by itself."""
_PROMPT_TOKENS: Final = 4
"""How much of the prompt is looked at. One token is enough for a leading space; the others are for
decoders that tidy up around punctuation."""
_LOOKED_AT: Final = 64
"""A longer run of special tokens counts as the beginning of a text."""
_BROKEN: Final = "\ufffd"


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

    def __init__(
        self, token_bytes: TokenBytes, skipped: frozenset[int], prompt: Sequence[int] = ()
    ) -> None:
        """``prompt`` is what the text goes on from; it may break off within a character."""
        self._bytes = token_bytes
        self._skipped = skipped
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._unfinished = self._end_of(prompt)

    def push(self, token: int) -> str:
        if token in self._skipped:
            return ""
        data = self._bytes[token]
        if self._unfinished and data:
            self._take_up(data[:1])
        return self._utf8.decode(data)

    def flush(self) -> str:
        return self._utf8.decode(b"", True)

    def _end_of(self, prompt: Sequence[int]) -> bytes:
        """The bytes of a character that the prompt does not finish."""
        data = b""
        for token in islice(reversed(prompt), _LOOKED_AT):
            if token not in self._skipped:
                data = self._bytes[token] + data
            if data and data[-1] < _BEYOND_ASCII:
                return b""
            if len(data) >= _LONGEST_CHARACTER_BYTES:
                break
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(data)
        return decoder.getstate()[0]

    def _take_up(self, first: bytes) -> None:
        """Go on with the prompt's character, if the output's first byte does."""
        unfinished, self._unfinished = self._unfinished, b""
        try:
            codecs.getincrementaldecoder("utf-8")("strict").decode(unfinished + first)
        except UnicodeDecodeError:
            return
        self._utf8.decode(unfinished)


class DecoderStream:
    """Any other decoder, through the tokenizer library's own stream.

    What a token stands for depends on the tokens before it: the first of a text loses its leading
    space. So the stream begins with the prompt's last tokens, whose text is not given out.

    A byte-fallback decoder turns a whole run of bytes into U+FFFD when any of them is invalid,
    also those already shown as a character. Text that was sent cannot be taken back, so the
    tokens since then are decoded by themselves and the stream goes on after them.
    """

    def __init__(
        self, tokenizer: Tokenizer, skipped: frozenset[int], prompt: Sequence[int] = ()
    ) -> None:
        """``prompt`` is what the text goes on from; it may break off within a character."""
        self._tokenizer = tokenizer
        self._skip = bool(skipped)
        self._shown = self._end_of(prompt, skipped)
        self._unfinished: list[int] = []
        self._held: list[int] = []
        while self._shown and self._decode(self._shown).endswith(_BROKEN):
            self._unfinished.insert(0, self._shown.pop())
        self._stream = DecodeStream(self._shown, self._skip)
        for token in self._unfinished:
            self._stream.step(tokenizer, token)

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
        if self._unfinished:
            text = self._decode_held()
        self._shown, self._unfinished, self._held = self._held, [], []
        return text

    def flush(self) -> str:
        if not self._held:
            return ""
        return self._decode_held()

    def _end_of(self, prompt: Sequence[int], skipped: frozenset[int]) -> list[int]:
        """A few of the prompt's last tokens that have a text, from the beginning of a character."""
        end: list[int] = []
        for token in islice(reversed(prompt), _LOOKED_AT):
            if token not in skipped:
                end.insert(0, token)
                if len(end) >= _PROMPT_TOKENS and not self._continues_character(token):
                    break
        return end

    def _continues_character(self, token: int) -> bool:
        piece = self._tokenizer.id_to_token(token) or ""
        return len(piece) == len("<0x80>") and "<0x80>" <= piece <= "<0xBF>"

    def _decode_held(self) -> str:
        """Text of the held tokens in their place: alone, a leading space could be stripped."""
        together = self._decode(self._shown + self._unfinished + self._held)
        # A character that the prompt began and the output finished is shown whole.
        for known in (self._shown + self._unfinished, self._shown):
            before = self._decode(known)
            if together.startswith(before):
                return together[len(before) :]
        return self._decode(self._held)

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=self._skip))
