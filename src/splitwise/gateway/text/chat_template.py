"""A model's chat template: messages to the prompt's text.

Rendered with the settings, filters and variables of transformers' ``apply_chat_template``, by
jinja2 directly: transformers would import torch, which costs seconds and hundreds of megabytes.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

log = logging.getLogger(__name__)

REMEDY: Final = "start the server with --chat-template FILE"
_ANSWER: Final = "The-answer-0f3a"
_SYSTEM: Final = {"role": "system", "content": "Be brief."}
_TURNS: Final = (
    {"role": "user", "content": "A question?"},
    {"role": "assistant", "content": _ANSWER},
    {"role": "user", "content": "Another question?"},
)


class ChatTemplateError(ValueError):
    """The messages do not fit the chat template, or there is none that could be used."""


class ChatTemplate:
    """A template that is ready to render."""

    def __init__(self, source: str, variables: Mapping[str, str], origin: str = "") -> None:
        """``variables`` are ``bos_token``, ``eos_token`` and so on; ``origin`` is said in errors.

        Raises:
            ChatTemplateError: it is no template.
        """
        self._variables = dict(variables)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(
                f"{origin or 'the chat template'} is no chat template: line {error.lineno}: "
                f"{error.message}; correct it, or {REMEDY} and another one"
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text of a conversation; ``extra`` are further variables.

        Raises:
            ChatTemplateError: it refuses the messages.
        """
        known = [
            {key: value for key, value in message.items() if value is not None}
            for message in messages
        ]
        variables = {
            **self._variables,
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

    def after_an_answer(self) -> list[str]:
        """What follows an assistant's answer, at the end of a conversation or before a question.

        A model that was trained on such conversations says what stands first there when it has
        said all.
        """
        texts: list[str] = []
        for turns in (_TURNS[:2], _TURNS, (_SYSTEM, *_TURNS)):  # some want a system message
            try:
                rendered = self.render(turns, add_generation_prompt=False)
            except ChatTemplateError as error:
                log.debug("what ends a turn cannot be seen in the chat template: %s", error)
                continue
            _, answer, after = rendered.rpartition(_ANSWER)
            if answer:
                texts.append(after)
        return texts


def find_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> tuple[str, str] | None:
    """A model's own template and where it stands; None if it has none.

    It is a file of its own, or a field of the tokenizer's settings: one template, or several by
    name.
    """
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text("utf-8"), str(file)
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if not isinstance(template, str):
        return None
    return template, f"chat_template in {folder / 'tokenizer_config.json'}"


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what an assistant wrote, for training; here it only shows it."""

    tags = {"generation"}  # noqa: RUF012  (the name and type jinja2 asks for)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


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
