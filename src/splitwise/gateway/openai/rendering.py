"""Answers and stream events as JSON, in the chat and in the plain completion shape.

An event is built of three parts: the head, encoded once a response; the choice; and the tail.
No JSON is ever parsed here, and nothing but the choice is encoded for a token.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar, cast

import msgspec

from splitwise.gateway.openai import protocol
from splitwise.gateway.openai.answer import Answer, Delta, TokenLogprob
from splitwise.gateway.pace import Pace
from splitwise.gateway.text.codec import TextCodec

DONE: Final = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode
T = TypeVar("T")


class Renderer(Protocol):
    """One shape of the API, for one response."""

    def event(self, answer: Answer, delta: Delta, usage: protocol.Usage | None) -> bytes:
        """The event for a chunk; ``usage`` only where it is to be shown on every event."""

    def usage_event(self, usage: protocol.Usage) -> bytes:
        """The last event, which has no choices."""

    async def whole(
        self, answers: Sequence[tuple[Answer, Delta]], usage: protocol.Usage, pace: Pace
    ) -> bytes:
        """The response of a request that does not stream."""


async def _encoded(
    shown: Callable[[TokenLogprob], T], entries: Sequence[TokenLogprob], pace: Pace
) -> list[T]:
    """What is shown of each entry, as JSON already, which goes into JSON as it stands: thousands of
    tokens with their alternatives would take long in one go."""
    encoded: list[msgspec.Raw] = []
    for entry in entries:
        encoded.append(msgspec.Raw(_encode(shown(entry))))
        await pace.rest()
    return cast(list[T], encoded)


class _Events:
    """What the events of a response share."""

    def __init__(self, response_id: str, kind: str, model: str) -> None:
        self.id = response_id
        self.model = model
        self.created = int(time.time())
        head = {"id": response_id, "object": kind, "created": self.created, "model": model}
        self._head = b"data: " + _encode(head)[:-1] + b',"choices":['

    def join(self, choice: Any, usage: protocol.Usage | None) -> bytes:
        if usage is None:
            return b"".join((self._head, _encode(choice), b"]}\n\n"))
        return b"".join((self._head, _encode(choice), b'],"usage":', _encode(usage), b"}\n\n"))

    def usage_event(self, usage: protocol.Usage) -> bytes:
        return b"".join((self._head, b'],"usage":', _encode(usage), b"}\n\n"))


class ChatRenderer:
    """``chat.completion`` and its chunks. The first event of a choice also carries the role."""

    def __init__(self, unique_id: str, model: str, codec: TextCodec, logprobs: bool) -> None:
        self._events = _Events(f"chatcmpl-{unique_id}", "chat.completion.chunk", model)
        self._codec = codec
        self._logprobs = logprobs
        self._begun: set[int] = set()
        self.usage_event = self._events.usage_event

    def event(self, answer: Answer, delta: Delta, usage: protocol.Usage | None) -> bytes:
        role = None
        if answer.index not in self._begun:
            self._begun.add(answer.index)
            role = "assistant"
        choice = protocol.ChatEventChoice(
            answer.index,
            protocol.ChatDelta(delta.text, role),
            self._shown(delta),
            answer.finish,
            delta.token_ids,
        )
        return self._events.join(choice, usage)

    async def whole(
        self, answers: Sequence[tuple[Answer, Delta]], usage: protocol.Usage, pace: Pace
    ) -> bytes:
        choices = [
            protocol.ChatChoice(
                answer.index,
                protocol.AssistantMessage(delta.text),
                protocol.ChatLogprobs(await _encoded(self._token, delta.logprobs, pace))
                if self._logprobs
                else None,
                answer.finish,
                delta.token_ids,
            )
            for answer, delta in answers
        ]
        events = self._events
        return _encode(protocol.ChatAnswer(events.id, events.created, events.model, choices, usage))

    def _shown(self, delta: Delta) -> protocol.ChatLogprobs | None:
        if not self._logprobs:
            return None
        return protocol.ChatLogprobs([self._token(entry) for entry in delta.logprobs])

    def _token(self, entry: TokenLogprob) -> protocol.ChatTokenLogprob:
        codec = self._codec
        return protocol.ChatTokenLogprob(
            codec.token_text(entry.token),
            entry.logprob,
            list(codec.token_bytes(entry.token)),
            [
                protocol.TopLogprob(
                    codec.token_text(token), logprob, list(codec.token_bytes(token))
                )
                for token, logprob in entry.top
            ],
        )


class CompletionRenderer:
    """``text_completion``, whole and in chunks."""

    def __init__(self, unique_id: str, model: str, codec: TextCodec, logprobs: bool) -> None:
        self._events = _Events(f"cmpl-{unique_id}", "text_completion", model)
        self._codec = codec
        self._logprobs = logprobs
        self.usage_event = self._events.usage_event

    def event(self, answer: Answer, delta: Delta, usage: protocol.Usage | None) -> bytes:
        top = [self._top(entry) for entry in delta.logprobs]
        return self._events.join(self._choice(answer, delta, top), usage)

    async def whole(
        self, answers: Sequence[tuple[Answer, Delta]], usage: protocol.Usage, pace: Pace
    ) -> bytes:
        choices = [
            self._choice(answer, delta, await _encoded(self._top, delta.logprobs, pace))
            for answer, delta in answers
        ]
        events = self._events
        return _encode(
            protocol.CompletionAnswer(events.id, events.created, events.model, choices, usage)
        )

    def _choice(
        self, answer: Answer, delta: Delta, top: list[dict[str, float]]
    ) -> protocol.CompletionChoice:
        shown = self._shown(delta.logprobs, top) if self._logprobs else None
        return protocol.CompletionChoice(
            answer.index, delta.text, shown, answer.finish, delta.token_ids
        )

    def _shown(
        self, entries: list[TokenLogprob], top: list[dict[str, float]]
    ) -> protocol.CompletionLogprobs:
        return protocol.CompletionLogprobs(
            text_offset=[entry.text_offset for entry in entries],
            token_logprobs=[entry.logprob for entry in entries],
            tokens=[self._codec.token_text(entry.token) for entry in entries],
            top_logprobs=top,
        )

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """By text, likeliest first; the sampled token is always among them."""
        top: dict[str, float] = {}
        for token, logprob in (*entry.top, (entry.token, entry.logprob)):
            top.setdefault(self._codec.token_text(token), logprob)
        return top
