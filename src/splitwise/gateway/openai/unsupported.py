"""Fields that would change the answer and are not supported: refused by name, never ignored.

A field that could only change how the answer is made (``metadata``, ``store``,
``service_tier``, ...) is not listed, and is ignored like any unknown one.
"""

from typing import Any

import msgspec

from splitwise.gateway.openai.errors import ApiError


class UnsupportedFields(msgspec.Struct, kw_only=True):
    """Declared so that they are seen; anything but a harmless value is an error."""

    allowed_token_ids: Any = None
    audio: Any = None
    bad_words: Any = None
    best_of: Any = None
    chat_template: Any = None
    continue_final_message: Any = None
    documents: Any = None
    echo: Any = None
    function_call: Any = None
    functions: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    kv_transfer_params: Any = None
    length_penalty: Any = None
    logit_bias: Any = None
    logits_processors: Any = None
    modalities: Any = None
    prompt_embeds: Any = None
    prompt_logprobs: Any = None
    response_format: Any = None
    return_tokens_as_token_ids: Any = None
    structured_outputs: Any = None
    suffix: Any = None
    tool_choice: Any = None
    tools: Any = None
    truncate_prompt_tokens: Any = None
    use_beam_search: Any = None
    web_search_options: Any = None


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


def harmless_values() -> dict[str, list[object]]:
    """What each of the fields may hold without being refused, for the API's description.

    ``tools`` is left out: it may hold anything beside ``tool_choice: none``.
    """
    return {name: list(_HARMLESS.get(name, NOTHING)) for name in _NAMES if name != "tools"}


def refuse_unsupported(fields: UnsupportedFields) -> None:
    """Raise a 400 for the first field that asks for what is not there."""
    for name in _NAMES:
        value = getattr(fields, name)
        if value is None or _is_one_of(value, _HARMLESS.get(name, NOTHING)):
            continue
        if name == "tools" and fields.tool_choice == "none":
            continue
        raise ApiError(
            400,
            f"{name} is not supported by this server: leave the field out",
            name,
            "unsupported_parameter",
        )


def _is_one_of(value: object, harmless: tuple[object, ...]) -> bool:
    """As JSON has it: true is not 1."""
    return any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in harmless
    )
