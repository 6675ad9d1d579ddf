"""Text to tokens and back, as the model's own files say.

1. ``TextCodec.load`` reads ``tokenizer.json`` and the chat template from the model's folder.
2. ``render_chat`` makes text of messages; ``encode`` makes tokens of text.
3. ``stream`` makes text of the output's tokens as they come, in the place where they stand: after
   the prompt (``detokenise``).

The gateway uses the ``tokenizers`` library and jinja2 directly: transformers would import torch,
which costs seconds and hundreds of megabytes. Chat templates are rendered with the settings,
filters and variables of transformers' ``apply_chat_template``.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel

from splitwise.gateway.text.detokenise import ByteLevelStream, DecoderStream, TextStream, TokenBytes
from splitwise.gateway.text.stops import SpecialTexts

LONG_TEXT_CHARS = 16_384
"""Longer text (or as many tokens) goes to a thread: it would hold up the event loop for
milliseconds."""

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


class ChatTemplateError(ValueError):
    """The messages do not fit the model's chat template, or the model has none."""


class TextCodec:
    """Tokenizer and chat template of one model. For use from one event loop."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        """``special_tokens`` are the template's variables (``bos_token``, ``eos_token``, ...)."""
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
        self._byte_level = isinstance(tokenizer.decoder, ByteLevel)
        self._bytes = TokenBytes(tokenizer)
        self._template = _compile(chat_template) if chat_template else None
        self._template_variables = dict(special_tokens or {})
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")

    @classmethod
    def load(cls, folder: Path) -> "TextCodec":
        """Read a model's folder.

        Raises:
            FileNotFoundError: it has no ``tokenizer.json``.
        """
        file = folder / "tokenizer.json"
        if not file.exists():
            raise FileNotFoundError(
                f"{file} is missing: load the tokenizer with transformers' AutoTokenizer and "
                "save_pretrained it into the model's folder"
            )
        config = _read_json(folder / "special_tokens_map.json")
        config |= _read_json(folder / "tokenizer_config.json")
        return cls(
            Tokenizer.from_file(str(file)),
            _find_template(folder, config),
            {name: _content(config[name]) for name in _SPECIAL_TOKENS if config.get(name)},
        )

    def close(self) -> None:
        """End the encoding thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def encode(self, text: str, add_special_tokens: bool, at_most_tokens: int) -> list[int]:
        """Token ids of ``text``; long texts are encoded one after another in a thread.

        Raises:
            TextTooLong: it has far more than ``at_most_tokens``. A text that has only somewhat
                more is encoded: the caller counts.
        """
        if len(text) <= LONG_TEXT_CHARS:
            return self._encode(text, add_special_tokens)
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._encode_long, text, add_special_tokens, at_most_tokens
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
        if len(tokens) <= LONG_TEXT_CHARS:
            return self._decode(tokens, skip_special_tokens)
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._decode, tokens, skip_special_tokens
        )

    def _decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens))

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
                "the model has no chat template: use /v1/completions with a plain prompt"
            )
        known = [
            {key: value for key, value in message.items() if value is not None}
            for message in messages
        ]
        variables = {
            **self._template_variables,
            "tools": None,
            "documents": None,
            **(extra or {}),
            "messages": known,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._template.render(variables)
        except Exception as error:
            # A template is a program over the client's data: whatever it raises is an answer, but
            # only what it says itself is meant for the client.
            said = error if isinstance(error, jinja2.TemplateError) else "they do not fit it"
            raise ChatTemplateError(
                f"the model's chat template refuses the messages: {said}"
            ) from error

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


def _find_template(folder: Path, config: dict[str, Any]) -> str | None:
    """A file of its own, or a field of the tokenizer's settings: one template, or several named."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what an assistant wrote, for training; here it only shows it."""

    tags = {"generation"}  # noqa: RUF012  (the name and type jinja2 asks for)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own filter this leaves HTML characters alone."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
