"""The OpenAPI 3.1 description of the HTTP API, made of the structs that decode and answer it.

The ranges are those that ``openai.validation`` enforces. What no schema can say, such as a prompt
that is too long for the model, is refused with 400 too.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from splitwise import __version__
from splitwise.cluster.pools import MachineView
from splitwise.gateway.admin import Order, PoolList
from splitwise.gateway.http.exchange import MAX_REQUEST_ID_CHARS, HttpLimits
from splitwise.gateway.openai import protocol
from splitwise.gateway.openai.errors import ErrorAnswer
from splitwise.gateway.openai.unsupported import harmless_values
from splitwise.gateway.openai.validation import ModelFacts, max_token_ids
from splitwise.scheduling.pool import POOL_NAMES

Schema = dict[str, Any]

_REF: Final = "#/components/schemas/{name}"
_MEANINGS: Final = {
    400: "The request is not HTTP/1.1, not JSON, or a field does not fit; `param` names it.",
    401: "No valid key was sent.",
    404: "There is no such path, model or machine.",
    405: "The path does not take this method; `Allow` names those that it takes.",
    408: "The headers or the body did not arrive in time.",
    409: "The machine is not in a state in which this can be set.",
    413: "The body is too large.",
    429: "Too many requests wait already; `Retry-After` says for how many seconds not to ask.",
    431: "The headers are too large.",
    500: "The server failed on this request.",
    503: "The server cannot serve now, or ends.",
    504: "The request took longer than the server, or `X-Request-Timeout`, allows.",
}
_ANYWHERE: Final = (400, 401, 405, 408, 431, 500, 503, 504)
"""Answers that every operation may give."""
_REQUEST_ID: Final[Schema] = {
    "name": "X-Request-Id",
    "in": "header",
    "description": "Comes back, and is in the server's log. Another is made up where it is not "
    f"printable ASCII of at most {MAX_REQUEST_ID_CHARS} characters.",
    "schema": {"type": "string"},
}
_REQUEST_TIMEOUT: Final[Schema] = {
    "name": "X-Request-Timeout",
    "in": "header",
    "description": "Seconds that the whole exchange may take.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}
_MODEL: Final[Schema] = {
    "name": "model",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
}
_MACHINE: Final[Schema] = _MODEL | {"name": "machine"}


@dataclass(frozen=True)
class _Operation:
    """One method of one path. ``answer`` is a struct or, for other text, its content type."""

    method: str
    path: str
    summary: str
    answer: "type[msgspec.Struct] | str"
    body: type[msgspec.Struct] | None = None
    more: tuple[int, ...] = ()
    """Statuses beside those that are possible anywhere."""
    streams: bool = False
    parameter: Schema | None = None
    security: tuple[str, ...] = ("api_key",)
    """Keys of which one is needed where the server has such keys; without any it is open."""


_GENERATES: Final = (404, 413, 429)
_OPERATIONS: Final = (
    _Operation(
        *("post", "/v1/chat/completions", "Answer a conversation.", protocol.ChatAnswer),
        body=protocol.ChatRequest,
        more=_GENERATES,
        streams=True,
    ),
    _Operation(
        *("post", "/v1/completions", "Continue prompts.", protocol.CompletionAnswer),
        body=protocol.CompletionRequest,
        more=_GENERATES,
        streams=True,
    ),
    _Operation("get", "/v1/models", "The one model.", protocol.ModelList),
    _Operation(
        *("get", "/v1/models/{model}", "A model by name.", protocol.ModelCard),
        more=(404,),
        parameter=_MODEL,
    ),
    _Operation(
        *("post", "/tokenize", "Text or a conversation to token ids.", protocol.TokenizeAnswer),
        body=protocol.TokenizeRequest,
        more=(404, 413),
    ),
    _Operation(
        *("post", "/detokenize", "Token ids to text.", protocol.DetokenizeAnswer),
        body=protocol.DetokenizeRequest,
        more=(404, 413),
    ),
    _Operation("get", "/health", "Whether it can serve.", protocol.Healthy, security=()),
    _Operation("get", "/version", "Its release.", protocol.Version, security=()),
    _Operation("get", "/openapi.json", "This description.", "application/json", security=()),
    _Operation("get", "/metrics", "Prometheus metrics.", "text/plain"),
    _Operation(
        *("get", "/admin/pools", "Every machine.", PoolList),
        more=(404,),
        security=("admin_key",),
    ),
    *(
        _Operation(
            *(method, "/admin/pools/{machine}", "Set a machine's pool, or drain it.", MachineView),
            body=Order,
            more=(404, 409, 413),
            parameter=_MACHINE,
            security=("admin_key",),
        )
        for method in ("patch", "post")
    ),
)
_EVENT: Final[Schema] = {
    "type": "object",
    "description": "Each event. Its data is a chunk of the answer, or an error, as JSON; that of "
    "the last is [DONE].",
    "properties": {"data": {"type": "string"}},
    "required": ["data"],
}
_GENERATE: Final = ("ChatRequest", "CompletionRequest")
_NAME_THE_MODEL: Final = (*_GENERATE, "TokenizeRequest", "DetokenizeRequest")
_KEYS: Final = {
    "api_key": "One of the server's API keys; needed only where it has any.",
    "admin_key": "SPLITWISE_ADMIN_KEY. Without one there is no such endpoint (404).",
}


def describe(model: ModelFacts, limits: HttpLimits) -> bytes:
    """The description, as JSON, of a server of ``model``."""
    paths: dict[str, Schema] = {}
    for operation in _OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    description = {
        "openapi": "3.1.0",
        "info": {
            "title": "Splitwise",
            "version": __version__,
            "description": "Names and shapes are OpenAI's. GET paths outside /admin take HEAD too.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(model, limits),
            "securitySchemes": {
                name: {"type": "http", "scheme": "bearer", "description": said}
                for name, said in _KEYS.items()
            },
        },
    }
    return msgspec.json.encode(description)


def _operation(operation: _Operation) -> Schema:
    statuses = sorted({*_ANYWHERE, *operation.more})
    described: Schema = {
        "summary": operation.summary,
        "operationId": operation.method + operation.path,
        "parameters": _parameters(operation),
        "responses": {
            "200": _success(operation),
            **{str(status): _failure(status) for status in statuses},
        },
        "security": _security(operation.security),
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _json(operation.body)}
    return described


def _parameters(operation: _Operation) -> list[Schema]:
    given = [_REQUEST_ID]
    if "admin_key" not in operation.security:
        given.append(_REQUEST_TIMEOUT)
    return given if operation.parameter is None else [*given, operation.parameter]


def _security(keys: tuple[str, ...]) -> list[Schema]:
    """An empty alternative says that it also works without a key."""
    needed: list[Schema] = [{name: []} for name in keys]
    return needed if "admin_key" in keys else [*needed, {}]


def _success(operation: _Operation) -> Schema:
    if isinstance(operation.answer, str):
        content: Schema = {operation.answer: {"schema": {}}}
    else:
        content = _json(operation.answer)
    if operation.streams:
        content["text/event-stream"] = {"schema": _EVENT}
    return {"description": "Success.", "headers": _answer_headers(), "content": content}


def _failure(status: int) -> Schema:
    return {"description": _MEANINGS[status], "content": _json(ErrorAnswer)}


def _answer_headers() -> Schema:
    return {"X-Request-Id": {"required": True, "schema": {"type": "string"}}}


def _json(struct: type[msgspec.Struct]) -> Schema:
    return {"application/json": {"schema": {"$ref": _REF.format(name=struct.__name__)}}}


def _schemas(model: ModelFacts, limits: HttpLimits) -> dict[str, Schema]:
    structs: list[type[msgspec.Struct]] = [ErrorAnswer]
    for operation in _OPERATIONS:
        structs += [operation.body] if operation.body is not None else []
        structs += [operation.answer] if not isinstance(operation.answer, str) else []
    _, schemas = msgspec.json.schema_components(structs, ref_template=_REF)
    fields = {name: schema["properties"] for name, schema in schemas.items()}
    for name in _GENERATE:
        _bound(fields[name], limits)
    fields["ChatRequest"]["top_logprobs"]["maximum"] = limits.max_logprobs
    fields["CompletionRequest"]["logprobs"]["maximum"] = limits.max_logprobs
    for name in _NAME_THE_MODEL:
        fields[name]["model"] = {"enum": [model.name, None], "default": None}
    tokens = fields["DetokenizeRequest"]["tokens"]
    tokens["items"]["maximum"] = model.vocab_size - 1
    tokens["maxItems"] = max_token_ids(model, limits)
    fields["ChatRequest"]["messages"]["maxItems"] = limits.max_messages
    schemas["ChatMessage"]["required"].append("content")
    fields["Order"]["pool"] = {"enum": [*POOL_NAMES, None], "default": None}
    return schemas


def _bound(fields: dict[str, Schema], limits: HttpLimits) -> None:
    """What depends on the server's limits, and the fields that it does not support."""
    fields["n"]["maximum"] = limits.max_choices
    one = {"type": "string", "minLength": 1, "maxLength": limits.max_stop_string_chars}
    several = {"type": "array", "maxItems": limits.max_stop_strings, "items": one}
    fields["stop"] = {"anyOf": [one, several, {"type": "null"}], "default": None}
    fields["stop_token_ids"]["maxItems"] = limits.max_stop_token_ids
    for name, values in harmless_values().items():
        fields[name] = {"enum": values, "description": "Not supported: leave it out."}
