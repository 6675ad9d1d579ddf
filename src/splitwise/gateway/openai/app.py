"""The ASGI application: a small route table over the cluster.

The life of a request to ``/v1/chat/completions`` or ``/v1/completions``:

1. ``App`` lets it through the ``gate``, finds the route and reads the body within its limits.
2. ``validation.decode`` parses it; ``chat`` or ``completions`` validates it and makes a ``Job``.
3. ``generate.Runner`` submits it to the cluster and sends what comes back, while the client is
   connected. A client that goes away, at any time, or the request's ``deadline`` cancels it on
   the cluster.
4. Whatever goes wrong becomes an OpenAI-shaped error, or the last event of a stream
   (``failures``).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from splitwise import __version__
from splitwise.gateway.description import describe
from splitwise.gateway.http.asgi import Receive, Scope, Send
from splitwise.gateway.http.exchange import HttpLimits, Reply, Request
from splitwise.gateway.openai import protocol
from splitwise.gateway.openai.bodies import BodyDecoder
from splitwise.gateway.openai.chat import chat_prompt, prepare_chat
from splitwise.gateway.openai.completions import prepare_completion
from splitwise.gateway.openai.deadline import deadline_passed, time_limit_s
from splitwise.gateway.openai.errors import ApiError
from splitwise.gateway.openai.failures import answer_failures
from splitwise.gateway.openai.gate import Gate
from splitwise.gateway.openai.generate import Job, Runner
from splitwise.gateway.openai.jobs import Front, Origin, encode_prompt
from splitwise.gateway.openai.unsupported import refuse_unsupported
from splitwise.gateway.openai.validation import (
    ModelFacts,
    check_model,
    check_token_ids,
    max_token_ids,
)
from splitwise.gateway.pace import Turns
from splitwise.gateway.text.codec import TextCodec
from splitwise.observe.metrics import CONTENT_TYPE, Metrics
from splitwise.protocol.generation import Generator

T = TypeVar("T", bound=protocol.GenerationFields)
Handler = Callable[[Request, Reply], Awaitable[None]]

_chat_decoder = BodyDecoder(protocol.ChatRequest)
_completion_decoder = BodyDecoder(protocol.CompletionRequest)
_tokenize_decoder = BodyDecoder(protocol.TokenizeRequest)
_detokenize_decoder = BodyDecoder(protocol.DetokenizeRequest)
_MODELS = "/v1/models"
_TEXTS_AT_ONCE = 1024


class App:
    """The API over ``generator``: routes requests. See the module's docstring."""

    def __init__(
        self,
        generator: Generator,
        codec: TextCodec,
        model: ModelFacts,
        metrics: Metrics,
        limits: HttpLimits,
        health: Callable[[], str | None],
        gate: Gate | None = None,
    ) -> None:
        """``health`` gives the reason why it cannot serve, or None. Without a ``gate`` it is open
        to everybody."""
        self._turns = Turns()
        self._runner = Runner(generator, codec, metrics, self._turns)
        self._front = Front(codec, model, limits, self._turns)
        self._max_token_ids = max_token_ids(model, limits)
        self._codec = codec
        self._model = model
        self._metrics = metrics
        self._limits = limits
        self._health = health
        self._gate = gate or Gate()
        self._started_s = int(time.time())
        self._description = describe(model, limits)
        self._routes: dict[str, dict[str, Handler]] = {
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/completions": {"POST": self._completion},
            _MODELS: {"GET": self._models},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            "/health": {"GET": self._show_health},
            "/version": {"GET": self._version},
            "/openapi.json": {"GET": self._describe},
            "/metrics": {"GET": self._show_metrics},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"only HTTP is served here, not {scope['type']}")
        request = Request(scope, receive)
        reply = Reply(send, request.id)
        await answer_failures(self._answer_in_time(request, reply), request, reply, self._limits)

    async def _answer_in_time(self, request: Request, reply: Reply) -> None:
        """Whatever still runs for the request at its deadline is cancelled, on the cluster too."""
        self._gate.check(request)
        limit_s = time_limit_s(request.timeout, self._limits.max_request_s)
        try:
            async with asyncio.timeout(limit_s) as deadline:
                await self._route(request)(request, reply)
        except TimeoutError as error:
            if deadline.expired():
                raise deadline_passed(limit_s) from error
            raise

    def _route(self, request: Request) -> Handler:
        methods = self._routes.get(request.path)
        if methods is None and request.path.startswith(_MODELS + "/"):
            methods = {"GET": self._show_model}
        if methods is None:
            raise ApiError(404, f"there is no {request.path[:200]} here: check the path")
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            allow = ", ".join(methods)
            raise ApiError(
                405,
                f"{request.path} does not take {request.method}: use {allow}",
                headers=[(b"allow", allow.encode("ascii"))],
            )
        return handler

    # Generation.

    async def _chat(self, request: Request, reply: Reply) -> None:
        await self._generate(request, reply, _chat_decoder, prepare_chat)

    async def _completion(self, request: Request, reply: Reply) -> None:
        await self._generate(request, reply, _completion_decoder, prepare_completion)

    async def _generate(
        self,
        request: Request,
        reply: Reply,
        decoder: BodyDecoder[T],
        prepare: Callable[[T, Front, Origin], Awaitable[Job]],
    ) -> None:
        fields = await decoder.decode(await request.body(self._limits), self._max_token_ids)
        check_model(fields.model, self._model.name)
        refuse_unsupported(fields)
        user = fields.safety_identifier or fields.user
        origin = Origin(
            _unique_id(request),
            self._gate.client(request, user),
            self._gate.least_priority(request),
        )
        with request.while_connected():
            job = await prepare(fields, self._front, origin)
            await self._runner.run(job, reply, request.arrived_s)

    # Text and tokens.

    async def _tokenize(self, request: Request, reply: Reply) -> None:
        fields = await _tokenize_decoder.decode(
            await request.body(self._limits), self._max_token_ids
        )
        check_model(fields.model, self._model.name)
        if (fields.prompt is None) == (fields.messages is None):
            raise ApiError(400, "send either prompt or messages", "prompt")
        at_most = self._max_token_ids
        if fields.prompt is not None:
            special = fields.add_special_tokens is not False
            tokens = await encode_prompt("prompt", fields.prompt, special, at_most, self._codec)
        else:
            messages = fields.messages or []
            tokens = await chat_prompt(fields, messages, self._codec, at_most, self._limits)
        texts = await self._texts(tokens) if fields.return_token_strs else None
        await self._answer(
            reply,
            protocol.TokenizeAnswer(len(tokens), self._model.max_context_tokens, tokens, texts),
        )

    async def _texts(self, tokens: list[int]) -> list[str]:
        texts: list[str] = []
        pace = self._turns.pace()
        for start in range(0, len(tokens), _TEXTS_AT_ONCE):
            texts += map(self._codec.token_text, tokens[start : start + _TEXTS_AT_ONCE])
            await pace.rest()
        return texts

    async def _detokenize(self, request: Request, reply: Reply) -> None:
        fields = await _detokenize_decoder.decode(
            await request.body(self._limits), self._max_token_ids
        )
        check_model(fields.model, self._model.name)
        check_token_ids("tokens", fields.tokens, self._model)
        text = await self._codec.decode(fields.tokens)
        await self._answer(reply, protocol.DetokenizeAnswer(text))

    # The server itself.

    async def _models(self, request: Request, reply: Reply) -> None:
        await self._answer(reply, protocol.ModelList([self._card()]))

    async def _show_model(self, request: Request, reply: Reply) -> None:
        check_model(request.path[len(_MODELS) + 1 :], self._model.name)
        await self._answer(reply, self._card())

    def _card(self) -> protocol.ModelCard:
        name = self._model.name
        return protocol.ModelCard(name, self._started_s, name, self._model.max_context_tokens)

    async def _show_health(self, request: Request, reply: Reply) -> None:
        reason = "draining" if self._gate.draining else self._health()
        if reason is not None:
            raise ApiError(503, reason, None, "unavailable", "server_error")
        await self._answer(reply, protocol.Healthy())

    async def _version(self, request: Request, reply: Reply) -> None:
        await self._answer(reply, protocol.Version(__version__))

    async def _describe(self, request: Request, reply: Reply) -> None:
        await reply.body(200, self._description)

    async def _show_metrics(self, request: Request, reply: Reply) -> None:
        # With a thousand machines it is some ten milliseconds.
        text = await self._codec.run(self._metrics.render, in_thread=True)
        await reply.body(200, text, CONTENT_TYPE.encode("ascii"))

    async def _answer(self, reply: Reply, answer: msgspec.Struct) -> None:
        await reply.body(200, msgspec.json.encode(answer))


def _unique_id(request: Request) -> str:
    """Unique on the cluster even if a client repeats its request id, and traceable to it."""
    if not request.client_id:
        return request.id
    return f"{request.client_id}-{request.unique_id}"
