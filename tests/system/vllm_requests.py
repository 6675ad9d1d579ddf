"""Requests of every kind that a server of vLLM may get, and what was answered."""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from splitwise.engine.model_files import DEFAULT_MODEL

LENGTHS: Final = (1, 2, 17, 60, 127, 128, 129, 200, 255, 256, 257, 300, 400, 512, 640, 900)
SAMPLED: Final = (
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 40},
    {"temperature": 1.3, "min_p": 0.05},
)
PENALTIES: Final = (
    {"repetition_penalty": 1.2},
    {"presence_penalty": 0.8, "frequency_penalty": 0.4},
)


@dataclass(frozen=True)
class Asked:
    path: str
    body: dict[str, Any]

    @property
    def is_chat(self) -> bool:
        return "messages" in self.body


@dataclass
class Choice:
    """One choice of an answer, put together from its parts if it was streamed."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str | None = None

    def is_like(self, other: "Choice") -> bool:
        """The same, but for the rounding of log-probabilities in another batch."""
        same = (self.text, self.tokens, self.finish) == (other.text, other.tokens, other.finish)
        pairs = zip(self.logprobs, other.logprobs, strict=False)
        is_near = all(abs(a - b) < 1e-2 for a, b in pairs)
        return same and is_near and len(self.logprobs) == len(other.logprobs)


def request_of(number: int, words: list[str]) -> Asked:
    """Request ``number``; of ``words`` chats are made. Whatever it draws has a seed."""
    rng = random.Random(number)
    tokens = LENGTHS[number % len(LENGTHS)]
    body: dict[str, Any] = {
        "model": DEFAULT_MODEL,
        "max_tokens": rng.choice((1, 2, 5, 12, 40, 150)),
        "return_token_ids": True,
        "priority": rng.choice((0, 0, 0, -1, 3)),
        "ignore_eos": rng.random() < 0.7,
        "temperature": 0,
    }
    if number % 2:
        body |= rng.choice(SAMPLED) | {"seed": number}
    if rng.random() < 0.3:
        body |= rng.choice(PENALTIES)
    if rng.random() < 0.2:
        body |= {"stop": [" the", "\n", "e"][: rng.randint(1, 3)]}
    if rng.random() < 0.2:
        body |= {"stop_token_ids": [rng.randrange(200) for _ in range(20)]}
    if rng.random() < 0.15:
        body |= {"n": rng.randint(2, 3)}
    has_logprobs = rng.random() < 0.3
    if number % 5 == 4:
        text = " ".join(rng.choice(words) for _ in range(tokens * 2 // 3 + 1))
        body |= {"messages": [{"role": "user", "content": text}]}
        body |= {"logprobs": True, "top_logprobs": 3} if has_logprobs else {}
        return Asked("/v1/chat/completions", body)
    body |= {"prompt": [rng.randrange(1000, 40_000) for _ in range(tokens)]}
    body |= {"logprobs": 2} if has_logprobs else {}
    return Asked("/v1/completions", body)


def choices_in(answer: dict[str, Any]) -> list[Choice]:
    """Of an answer in one piece."""
    return _collected(answer["choices"], "message")


def choices_streamed(lines: Iterable[str]) -> list[Choice]:
    """
    Raises:
        ValueError: the stream did not end as it should.
    """
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    if not events or events[-1] != "[DONE]":
        raise ValueError(f"a stream that ended with {events[-1:]}")
    parts = [json.loads(event) for event in events[:-1]]
    for part in parts:
        if "error" in part:
            raise ValueError(f"a stream with {part}")
    return _collected([choice for part in parts for choice in part["choices"]], "delta")


def _collected(parts: Iterable[dict[str, Any]], chat_field: str) -> list[Choice]:
    choices: dict[int, Choice] = {}
    for part in parts:
        choice = choices.setdefault(part["index"], Choice())
        choice.text += part["text"] if "text" in part else part[chat_field].get("content") or ""
        choice.tokens += part.get("token_ids") or []
        choice.logprobs += _logprobs(part.get("logprobs"))
        choice.finish = part.get("finish_reason") or choice.finish
    return [choices[index] for index in sorted(choices)]


def _logprobs(said: dict[str, Any] | None) -> list[float]:
    if said is None:
        return []
    if "content" in said:
        return [entry["logprob"] for entry in said["content"]]
    return list(said["token_logprobs"])
