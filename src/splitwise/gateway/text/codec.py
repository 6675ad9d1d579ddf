"""Text to tokens and back, as the model's own files say.

1. ``TextCodec.load`` reads ``tokenizer.json`` and the chat template from the model's folder.
2. ``render_chat`` makes text of messages; ``encode`` makes tokens of text.
3. ``stream`` makes text of the output's tokens as they come, in the place where they stand: after
   the prompt (``detokenise``).

The gateway uses the ``tokenizers`` library directly: transformers would import torch, which costs
seconds and hundreds of megabytes.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel

from splitwise.gateway.text.chat_template import (
    REMEDY,
    ChatTemplate,
    ChatTemplateError,
    find_template,
)
from splitwise.gateway.text.detokenise import ByteLevelStream, DecoderStream, TextStream, TokenBytes
from splitwise.gateway.text.stops import SpecialTexts

T = TypeVar("T")

LONG_TEXT_CHARS = 4096
"""Longer text (or as many tokens) goes to a thread: it would hold up the event loop for a
millisecond and more."""
THREADS = 4
"""More long texts at a time wait for each other; shorter ones do not."""

_PIECE_CHARS = 65_536
_USUAL_CHARS_PER_TOKEN = 8
"""More than ordinary text has: an ordinary prompt that fits is never counted beforehand."""
_SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class TextTooLong(ValueError):
    """A text has so many tokens that they were not even counted."""


class TextCodec:
    """Tokenizer and chat template of one model. For use from one event loop."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
        template_origin: str = "",
    ) -> None:
        """``special_tokens`` are the template's variables (``bos_token``, ``eos_token``, ...);
        ``template_origin`` is where it stands.

        Raises:
            ChatTemplateError: the template is none.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        special = {
            added.content: token
            for token, added in tokenizer.get_added_tokens_decoder().items()
            if added.special
        }
        self._special_ids = frozenset(special.values())
        self.special_texts = SpecialTexts(special)
        self.largest_id = max(tokenizer.get_vocab().values(), default=-1)
        self._byte_level = isinstance(tokenizer.decoder, ByteLevel)
        self._bytes = TokenBytes(tokenizer)
        self._template: ChatTemplate | None = None
        if chat_template:
            self._template = ChatTemplate(chat_template, special_tokens or {}, template_origin)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="text")

    @classmethod
    def load(cls, folder: Path, chat_template: Path | None = None) -> "TextCodec":
        """Read a model's folder; ``chat_template`` is a file to take in place of its own template.

        Raises:
            FileNotFoundError: it has no ``tokenizer.json``, or there is no such template.
            ValueError: a file cannot be read, or the template is none (``ChatTemplateError``).
        """
        file = folder / "tokenizer.json"
        if not file.exists():
            raise FileNotFoundError(
                f"{file} is missing: load the tokenizer with transformers' AutoTokenizer and "
                "save_pretrained it into the model's folder"
            )
        config = _read_json(folder / "special_tokens_map.json")
        config |= _read_json(folder / "tokenizer_config.json")
        if chat_template is not None:
            if not chat_template.is_file():
                raise FileNotFoundError(f"--chat-template {chat_template}: there is no such file")
            template = chat_template.read_text("utf-8"), f"--chat-template {chat_template}"
        else:
            template = find_template(folder, config) or ("", "")
        special = {name: _content(config[name]) for name in _SPECIAL_TOKENS if config.get(name)}
        return cls(_read_tokenizer(file), template[0], special, template[1])

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def encode(self, text: str, add_special_tokens: bool, at_most_tokens: int) -> list[int]:
        """Token ids of ``text``; long texts are encoded in a thread.

        Raises:
            TextTooLong: it has far more than ``at_most_tokens``. A text that has only somewhat
                more is encoded: the caller counts.
        """
        if len(text) <= LONG_TEXT_CHARS:
            return self._encode(text, add_special_tokens)
        return await self.run(
            partial(self._encode_long, text, add_special_tokens, at_most_tokens), in_thread=True
        )

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def _encode_long(self, text: str, add_special_tokens: bool, at_most_tokens: int) -> list[int]:
        if len(text) > max(_PIECE_CHARS, _USUAL_CHARS_PER_TOKEN * at_most_tokens):
            self._refuse_far_longer(text, at_most_tokens)
        [encoded] = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoded.ids

    def _refuse_far_longer(self, text: str, at_most_tokens: int) -> None:
        """Count in pieces, because the tokenizer takes some 500 bytes a token while it works.

        Cutting a text into pieces adds a few tokens a piece; hence the factor of two.
        """
        tokens = 0
        for start in range(0, len(text), _PIECE_CHARS):
            piece = text[start : start + _PIECE_CHARS]
            [encoded] = self._tokenizer.encode_batch_fast([piece], add_special_tokens=False)
            tokens += len(encoded.ids)
            if tokens > 2 * at_most_tokens:
                raise TextTooLong(f"the text has more than {2 * at_most_tokens} tokens")

    async def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of ``tokens``, which must be in the vocabulary."""
        decode = partial(self._decode, tokens, skip_special_tokens)
        return await self.run(decode, in_thread=len(tokens) > LONG_TEXT_CHARS)

    def _decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        # Of a batch, unlike of a single list, the library lets other threads run meanwhile.
        [text] = self._tokenizer.decode_batch([tokens], skip_special_tokens=skip_special_tokens)
        return str(text)

    async def run(self, function: Callable[[], T], in_thread: bool) -> T:
        """Call it: here, or in one of the threads that are there for what takes long."""
        if not in_thread:
            return function()
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text of a conversation; ``extra`` are further variables of the template.

        Raises:
            ChatTemplateError: no template, or it refuses the messages.
        """
        if self._template is None:
            raise ChatTemplateError(
                "the model has no chat template: use /v1/completions with a plain prompt, or have "
                f"the operator {REMEDY}"
            )
        return self._template.render(messages, add_generation_prompt, extra)

    def end_of_turn_ids(self) -> list[int]:
        """The token that ends an assistant's turn in the chat template, if one does."""
        added = {
            token.content: number
            for number, token in self._tokenizer.get_added_tokens_decoder().items()
        }
        for text in self._template.after_an_answer() if self._template else ():
            starts = [token for token in added if token and text.lstrip().startswith(token)]
            if starts:
                return [added[max(starts, key=len)]]
        return []

    def stream(self, skip_special_tokens: bool = True, prompt: Sequence[int] = ()) -> TextStream:
        """A fresh text stream for one output, which goes on from ``prompt``."""
        skipped = self._special_ids if skip_special_tokens else frozenset[int]()
        if self._byte_level:
            return ByteLevelStream(self._bytes, skipped, prompt)
        return DecoderStream(self._tokenizer, skipped, prompt)

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for, in the middle of a text."""
        if self._byte_level:
            return self._bytes[token]
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("▁", " ").encode()

    def token_text(self, token: int) -> str:
        """``token_bytes`` as text, with U+FFFD for part of a character."""
        return self.token_bytes(token).decode("utf-8", "replace")


def _read_tokenizer(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:
        # The library has no class of its own for this.
        raise ValueError(f"{file} cannot be read ({error}); download the model again") from error


def _read_json(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    content = json.loads(file.read_text("utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object: restore the file")
    return content


def _content(token: str | dict[str, Any]) -> str:
    """A special token is written as a string or as an object with its settings."""
    return token if isinstance(token, str) else str(token["content"])
