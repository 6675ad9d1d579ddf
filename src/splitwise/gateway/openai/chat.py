"""``/v1/chat/completions``: messages to a job."""

from collections.abc import Sequence
from typing import Final

from splitwise.gateway.http.exchange import HttpLimits
from splitwise.gateway.openai.errors import ApiError, invalid
from splitwise.gateway.openai.generate import Job
from splitwise.gateway.openai.jobs import Front, Origin, encode_prompt, make_job
from splitwise.gateway.openai.protocol import ROLES, ChatMessage, ChatRequest, TokenizeRequest
from splitwise.gateway.openai.rendering import ChatRenderer
from splitwise.gateway.openai.unsupported import (
    NOTHING,
    is_one_of,
)
from splitwise.gateway.openai.validation import (
    check_choices,
    check_logprobs,
    check_max_tokens,
    check_room,
    check_token_ids,
)
from splitwise.gateway.text.chat_template import ChatTemplateError
from splitwise.gateway.text.codec import TextCodec

LONG_CONVERSATION: Final = 32_768
"""Of a larger ``_size`` the text is made in a thread."""
_MESSAGE_CHARS: Final = 512
"""A message costs as much to render as so many characters."""
_TEMPLATE_OWN = {"messages", "add_generation_prompt", "tools", "documents"}


async def prepare_chat(request: ChatRequest, front: Front, origin: Origin) -> Job:
    """Validate a chat request and render its prompt.

    Raises:
        ApiError: 400 or 404, naming the field.
    """
    logprobs = _logprobs(request, front.limits)
    n = check_choices("n", 1, request.n, front.limits)
    max_tokens = check_max_tokens("max_tokens", request.max_tokens)
    if request.max_completion_tokens is not None:
        max_tokens = check_max_tokens("max_completion_tokens", request.max_completion_tokens)
    prompt = await chat_prompt(
        request,
        request.messages,
        front.codec,
        front.model.max_context_tokens,
        front.limits,
    )
    if front.codec.largest_id >= front.model.vocab_size:
        check_token_ids("messages", prompt, front.model)
    default = front.model.defaults.max_new_tokens
    room = check_room("messages", len(prompt), max_tokens, default, front.model)
    return make_job(request, [(prompt, room)], n, logprobs, ChatRenderer, front, origin)


async def chat_prompt(
    request: ChatRequest | TokenizeRequest,
    messages: Sequence[ChatMessage],
    codec: TextCodec,
    at_most_tokens: int,
    limits: HttpLimits,
) -> list[int]:
    """The tokens of a conversation in the model's own template."""
    extra = request.chat_template_kwargs
    if not messages:
        raise invalid("messages", [], "send at least one message")
    if own := _TEMPLATE_OWN.intersection(extra or ()):
        name = min(own)
        raise ApiError(
            400, f"chat_template_kwargs.{name} cannot be set: leave it out", "chat_template_kwargs"
        )
    if len(messages) > limits.max_messages:
        raise ApiError(
            400,
            f"messages has {len(messages)} entries: send at most {limits.max_messages}",
            "messages",
        )

    def render() -> str:
        plain = [_plain(message, place) for place, message in enumerate(messages)]
        return codec.render_chat(plain, request.add_generation_prompt is not False, extra)

    try:
        text = await codec.run(render, _size(messages) > LONG_CONVERSATION)
    except ChatTemplateError as error:
        raise ApiError(400, str(error), "messages") from error
    return await encode_prompt(
        "messages", text, bool(request.add_special_tokens), at_most_tokens, codec
    )


def _size(messages: Sequence[ChatMessage]) -> int:
    """Characters, messages and parts counted as some."""
    return sum(
        _MESSAGE_CHARS
        + (
            len(message.content)
            if isinstance(message.content, str)
            else sum(_MESSAGE_CHARS + len(part.text or "") for part in message.content or ())
        )
        for message in messages
    )


def _logprobs(request: ChatRequest, limits: HttpLimits) -> int | None:
    if request.logprobs:
        return check_logprobs("top_logprobs", request.top_logprobs, limits)
    if request.top_logprobs:
        raise invalid("top_logprobs", request.top_logprobs, "set logprobs to true with it")
    return None


def _plain(message: ChatMessage, place: int) -> dict[str, str | None]:
    """A message as templates expect it: content is one string."""
    where = f"messages[{place}]"
    role = ROLES.get(message.role)
    if role is None:
        raise invalid(f"{where}.role", message.role, f"use one of {', '.join(ROLES)}")
    for name in ("tool_calls", "function_call", "audio"):
        if not is_one_of(getattr(message, name), NOTHING):
            raise ApiError(
                400,
                f"{where}.{name} is not supported by this server: leave it out",
                f"{where}.{name}",
                "unsupported_parameter",
            )
    return {
        "role": role,
        "content": _text(message, f"{where}.content"),
        "name": message.name,
        "reasoning_content": message.reasoning_content,
    }


def _text(message: ChatMessage, where: str) -> str:
    content = message.content
    if content is None:
        raise invalid(where, None, "send a string or a list of text parts")
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for place, part in enumerate(content):
        if part.type != "text":
            raise invalid(f"{where}[{place}].type", part.type, 'only "text" parts are supported')
        if part.text is None:
            raise invalid(f"{where}[{place}].text", None, "a text part needs its text")
        texts.append(part.text)
    return "\n".join(texts)
