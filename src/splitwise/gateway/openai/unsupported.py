"""Fields that would change the answer and are not supported: refused by name, never ignored.

A field that could only change how the answer is made (``metadata``, ``store``,
``service_tier``, ...) is not listed, and is ignored like any unknown one.
"""

from operator import attrgetter
from typing import Final

import msgspec

from splitwise.gateway.openai.errors import ApiError

Unread = msgspec.Raw | msgspec.UnsetType
"""A value as JSON, of which nothing is made; unset where the field is left out."""
_HARMLESS_BYTES: Final = 256
"""No harmless value is longer, however it is written."""


class UnsupportedFields(msgspec.Struct, kw_only=True):
    """Declared so that they are seen; anything but a harmless value is an error.

    They are not decoded for that: they may hold a million values."""

    allowed_token_ids: Unread = msgspec.UNSET
    audio: Unread = msgspec.UNSET
    bad_words: Unread = msgspec.UNSET
    best_of: Unread = msgspec.UNSET
    chat_template: Unread = msgspec.UNSET
    continue_final_message: Unread = msgspec.UNSET
    documents: Unread = msgspec.UNSET
    echo: Unread = msgspec.UNSET
    function_call: Unread = msgspec.UNSET
    functions: Unread = msgspec.UNSET
    guided_choice: Unread = msgspec.UNSET
    guided_grammar: Unread = msgspec.UNSET
    guided_json: Unread = msgspec.UNSET
    guided_regex: Unread = msgspec.UNSET
    kv_transfer_params: Unread = msgspec.UNSET
    length_penalty: Unread = msgspec.UNSET
    logit_bias: Unread = msgspec.UNSET
    logits_processors: Unread = msgspec.UNSET
    modalities: Unread = msgspec.UNSET
    prompt_embeds: Unread = msgspec.UNSET
    prompt_logprobs: Unread = msgspec.UNSET
    response_format: Unread = msgspec.UNSET
    return_tokens_as_token_ids: Unread = msgspec.UNSET
    structured_outputs: Unread = msgspec.UNSET
    suffix: Unread = msgspec.UNSET
    tool_choice: Unread = msgspec.UNSET
    tools: Unread = msgspec.UNSET
    truncate_prompt_tokens: Unread = msgspec.UNSET
    use_beam_search: Unread = msgspec.UNSET
    web_search_options: Unread = msgspec.UNSET


NOTHING: tuple[object, ...] = (None, False, 0, "", [], {})
"""Values that ask for nothing, whatever the field."""
_HARMLESS: dict[str, tuple[object, ...]] = {
    "best_of": (None, 1),
    "function_call": (None, "none", "auto"),
    "length_penalty": (None, 1),
    "modalities": (None, [], ["text"]),
    "prompt_logprobs": (None,),
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "none", "auto"),
    "truncate_prompt_tokens": (None,),
}
_NAMES = UnsupportedFields.__struct_fields__
_values_of = attrgetter(*_NAMES)
_NONE_IS_THERE = _values_of(UnsupportedFields())


def harmless_values() -> dict[str, list[object]]:
    """What each of the fields may hold without being refused, for the API's description.

    ``tools`` is left out: it may hold anything beside ``tool_choice: none``.
    """
    return {name: list(_HARMLESS.get(name, NOTHING)) for name in _NAMES if name != "tools"}


def refuse_unsupported(fields: UnsupportedFields) -> None:
    """Raise a 400 for the first field that asks for what is not there."""
    values = _values_of(fields)
    if values == _NONE_IS_THERE:  # as of nearly every request
        return
    for name, value in zip(_NAMES, values, strict=True):
        if value is msgspec.UNSET or is_one_of(value, _HARMLESS.get(name, NOTHING)):
            continue
        if name == "tools" and is_one_of(fields.tool_choice, ("none",)):
            continue
        raise ApiError(
            400,
            f"{name} is not supported by this server: leave the field out",
            name,
            "unsupported_parameter",
        )


def is_one_of(unread: Unread, harmless: tuple[object, ...]) -> bool:
    """As JSON has it: true is not 1. What is left out is null."""
    if unread is msgspec.UNSET:
        return None in harmless
    if memoryview(unread).nbytes > _HARMLESS_BYTES:
        return False
    value = msgspec.json.decode(unread)
    return any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in harmless
    )
