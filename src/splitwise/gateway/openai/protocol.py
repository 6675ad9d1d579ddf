"""What clients send and receive, typed. Names and shapes are OpenAI's; extras are vLLM's.

Every optional field may be null, which means the same as leaving it out. Unknown fields are
ignored. Ranges are checked in ``validation``; here they are only shown, for ``description``.
"""

from typing import Annotated, Any

import msgspec

from splitwise.gateway.openai.unsupported import NOTHING, Unread, UnsupportedFields

# Requests.


def _shown(**schema: object) -> msgspec.Meta:
    """JSON Schema for the description. It does not change what is decoded."""
    return msgspec.Meta(extra_json_schema=dict(schema))


Probability = Annotated[float | None, _shown(minimum=0, maximum=1)]
Penalty = Annotated[float | None, _shown(minimum=-2, maximum=2)]
AtLeastOne = Annotated[int | None, _shown(minimum=1)]
TokenId = Annotated[int, _shown(minimum=0)]


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """vLLM's: usage so far on every event."""


class GenerationFields(UnsupportedFields, kw_only=True):
    """What chat and plain completions share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: AtLeastOne = None
    min_tokens: Annotated[int | None, _shown(minimum=0)] = None
    n: AtLeastOne = None
    seed: Annotated[int | None, _shown(minimum=-(2**63), maximum=2**63 - 1)] = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    temperature: Annotated[float | None, _shown(minimum=0, maximum=2)] = None
    top_p: Annotated[float | None, _shown(exclusiveMinimum=0, maximum=1)] = None
    top_k: Annotated[int | None, _shown(minimum=-1, maximum=2**31 - 1)] = None
    min_p: Probability = None
    repetition_penalty: Annotated[float | None, _shown(exclusiveMinimum=0, maximum=100)] = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    priority: Annotated[int | None, _shown(minimum=-(2**63), maximum=2**63 - 1)] = None
    """vLLM's: lower is earlier, 0 where left out."""
    user: str | None = None
    safety_identifier: str | None = None
    """OpenAI's newer name for ``user``, and taken before it."""


Nothing = Annotated[Unread, _shown(enum=list(NOTHING))]
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""``developer`` is OpenAI's newer name for ``system``; templates know the older one."""


class ContentPart(msgspec.Struct):
    type: Annotated[str, _shown(enum=["text"])]
    text: str | None = None


class ChatMessage(msgspec.Struct):
    role: Annotated[str, _shown(enum=list(ROLES))]
    content: Annotated[str | list[ContentPart] | None, _shown(type=["string", "array"])] = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: Nothing = msgspec.UNSET
    function_call: Nothing = msgspec.UNSET
    audio: Nothing = msgspec.UNSET


class ChatRequest(GenerationFields, kw_only=True):
    messages: Annotated[list[ChatMessage], _shown(minItems=1)]
    max_completion_tokens: AtLeastOne = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, _shown(minimum=0)] = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


Prompt = str | list[int | str | list[int]]
_TOKEN_IDS: dict[str, object] = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "integer", "minimum": 0},
}
_KINDS: list[dict[str, object]] = [
    {"type": "string"},
    _TOKEN_IDS,
    {"type": "array", "minItems": 1, "items": {"type": "string"}},
    {"type": "array", "minItems": 1, "items": _TOKEN_IDS},
]
_PROMPT_KINDS = _shown(allOf=[{"anyOf": _KINDS}])
"""A list has entries of one kind."""


class CompletionRequest(GenerationFields, kw_only=True):
    prompt: Annotated[Prompt, _PROMPT_KINDS]
    logprobs: Annotated[int | None, _shown(minimum=0)] = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """Either ``prompt`` or ``messages``."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    tokens: list[TokenId]
    model: str | None = None


# Answers.

TokenIds = list[int] | msgspec.UnsetType
"""vLLM's ``return_token_ids``: there only where it was asked for."""


class Usage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[ChatTokenLogprob]


class CompletionLogprobs(msgspec.Struct):
    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class ChatDelta(msgspec.Struct, omit_defaults=True):
    content: str
    role: str | None = None


class ChatEventChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    token_ids: TokenIds = msgspec.UNSET


class AssistantMessage(msgspec.Struct):
    content: str
    role: str = "assistant"
    refusal: str | None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    token_ids: TokenIds = msgspec.UNSET


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    token_ids: TokenIds = msgspec.UNSET


class ChatAnswer(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: str = "chat.completion"


class CompletionAnswer(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    object: str = "text_completion"


class ModelCard(msgspec.Struct):
    id: str
    created: int
    root: str
    max_model_len: int
    object: str = "model"
    owned_by: str = "splitwise"
    parent: str | None = None


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    object: str = "list"


class TokenizeAnswer(msgspec.Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(msgspec.Struct):
    prompt: str


class Version(msgspec.Struct):
    version: str


class Healthy(msgspec.Struct):
    status: str = "ok"
