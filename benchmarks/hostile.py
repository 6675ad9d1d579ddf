"""Requests that are legal, or nearly so, and as costly for the gateway as we could think of.

Each is a path and a body within the default limits on size. ``CONTEXT_TOKENS`` is the context of
the model that they are for.
"""

import json
from collections.abc import Callable
from typing import Any

CONTEXT_TOKENS = 131_072
BODY_BYTES = 4 * 1024 * 1024 - 4096
CHAT = "/v1/chat/completions"
PLAIN = "/v1/completions"
TOKENIZE = "/tokenize"
DETOKENIZE = "/detokenize"
ENGLISH = "The quick brown fox jumps over the lazy dog, and then it sleeps for an hour or two. "

Asked = tuple[str, bytes]


def _post(path: str, **fields: Any) -> Asked:
    return path, json.dumps(fields, separators=(",", ":")).encode()


def _english(chars: int) -> str:
    return (ENGLISH * (chars // len(ENGLISH) + 1))[:chars]


def _filled(before: str, piece: str, after: str) -> bytes:
    """As many pieces as the body holds, with commas between."""
    count = (BODY_BYTES - len(before) - len(after)) // (len(piece) + 1)
    return (before + ",".join([piece] * count) + after).encode()


def _chat_of(piece: str) -> Asked:
    return CHAT, _filled('{"max_tokens":1,"messages":[', piece, "]}")


def _plain_with(field: str, piece: str, opening: str = "[", closing: str = "]") -> Asked:
    before = f'{{"max_tokens":1,"prompt":"hi","{field}":{opening}'
    return PLAIN, _filled(before, piece, closing + "}")


def _nested(field: str) -> Asked:
    depth = BODY_BYTES // 2 - 100
    inner = "[" * depth + "]" * depth
    return PLAIN, f'{{"max_tokens":1,"prompt":"hi","{field}":{inner}}}'.encode()


def _digits(field: str, start: str = "") -> Asked:
    number = start + "7" * (BODY_BYTES - 100)
    return PLAIN, f'{{"max_tokens":1,"prompt":"hi","{field}":{number}}}'.encode()


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


SMALL = _post(PLAIN, prompt="hi", max_tokens=1)
HOSTILE: dict[str, Callable[[], Asked]] = {
    "130,000 empty messages": lambda: _chat_of('{"role":"user","content":""}'),
    "8,000 messages of a line": lambda: _post(CHAT, messages=[_user(ENGLISH)] * 8000, max_tokens=1),
    "1,000 messages of a line": lambda: _post(CHAT, messages=[_user(ENGLISH)] * 1000, max_tokens=1),
    "one message of 400,000 characters": lambda: _post(
        CHAT, messages=[_user(_english(400_000))], max_tokens=1
    ),
    "one message of 150,000 parts": lambda: (
        CHAT,
        _filled(
            '{"max_tokens":1,"messages":[{"role":"user","content":[',
            '{"type":"text","text":""}',
            "]}]}",
        ),
    ),
    "128 prompts of 16,000 characters": lambda: _post(
        PLAIN, prompt=[_english(16_000)] * 128, max_tokens=1
    ),
    "128 prompts of 30,000 characters": lambda: _post(
        PLAIN, prompt=[_english(30_000)] * 128, max_tokens=1
    ),
    "a prompt of 400,000 characters": lambda: _post(PLAIN, prompt=_english(400_000), max_tokens=1),
    "a prompt of 4 MB": lambda: _post(PLAIN, prompt=_english(4_000_000), max_tokens=1),
    "4 MB without a space": lambda: _post(PLAIN, prompt="a" * 4_000_000, max_tokens=1),
    "120,000 token ids": lambda: _post(PLAIN, prompt=[300] * 120_000, max_tokens=1),
    "128 prompts of 8,000 token ids": lambda: _post(
        PLAIN, prompt=[[300] * 8_000] * 128, max_tokens=1
    ),
    "n of 128 over 100,000 token ids": lambda: _post(
        PLAIN, prompt=[300] * 100_000, n=128, max_tokens=1
    ),
    "a million empty prompts": lambda: (PLAIN, _filled('{"prompt":[', '""', "]}")),
    "16 long stop strings, 2,000 tokens": lambda: _post(
        PLAIN,
        prompt="hi",
        stop=["w" * 255 + str(place % 10) for place in range(16)],
        max_tokens=2000,
        ignore_eos=True,
        stream=True,
    ),
    "128 answers with 16 long stop strings": lambda: _post(
        PLAIN,
        prompt=" ",
        n=128,
        stop=[" " * 254 + "." + str(place % 10) for place in range(16)],
        max_tokens=200,
        ignore_eos=True,
    ),
    "300,000 stop strings": lambda: _plain_with("stop", '"stop here"'),
    "600,000 fields": lambda: (PLAIN, _filled('{"prompt":"hi",', '"a":1', "}")),
    "a string and a million token ids": lambda: (PLAIN, _filled('{"prompt":["hi",', "300", "]}")),
    "a million stop token ids": lambda: _plain_with("stop_token_ids", "300"),
    "128 answers with 20 logprobs": lambda: _post(
        PLAIN, prompt="hi", n=128, logprobs=20, max_tokens=64, ignore_eos=True
    ),
    "128 streamed answers with 20 logprobs": lambda: _post(
        CHAT,
        messages=[_user("hi")],
        n=128,
        logprobs=True,
        top_logprobs=20,
        max_tokens=64,
        ignore_eos=True,
        stream=True,
    ),
    "an answer of 4,000 tokens with 20 logprobs": lambda: _post(
        CHAT,
        messages=[_user("hi")],
        logprobs=True,
        top_logprobs=20,
        max_tokens=4000,
        ignore_eos=True,
    ),
    "/tokenize 400,000 characters, as strings": lambda: _post(
        TOKENIZE, prompt=_english(400_000), return_token_strs=True
    ),
    "/tokenize 4 MB": lambda: _post(TOKENIZE, prompt=_english(4_000_000)),
    "/tokenize 130,000 empty messages": lambda: (
        TOKENIZE,
        _filled('{"messages":[', '{"role":"user","content":""}', "]}"),
    ),
    "/detokenize a million": lambda: (DETOKENIZE, _filled('{"tokens":[', "300", "]}")),
    "tools of a million objects": lambda: _plain_with("tools", "{}"),
    "tool_calls of a million numbers": lambda: (
        CHAT,
        _filled(
            '{"max_tokens":1,"messages":[{"role":"user","content":"hi","tool_calls":[',
            "1",
            "]}]}",
        ),
    ),
    "template variables of a million numbers": lambda: (
        CHAT,
        _filled(
            '{"max_tokens":1,"messages":[{"role":"user","content":"hi"}],'
            '"chat_template_kwargs":{"x":[',
            "1",
            "]}}",
        ),
    ),
    "logit_bias of 300,000": lambda: _plain_with("logit_bias", '"1":1.5e1', "{", "}"),
    "an unknown field of a million numbers": lambda: _plain_with("x", "1e1"),
    "two million brackets": lambda: _nested("x"),
    "two million brackets in tools": lambda: _nested("tools"),
    "a seed of 4 MB of digits": lambda: _digits("seed"),
    "a temperature of 4 MB of digits": lambda: _digits("temperature", "0."),
    "a model's name of 4 MB": lambda: _post(PLAIN, prompt="hi", model="\x00" * 600_000),
    "escapes alone": lambda: _post(PLAIN, prompt="\u20ac" * 600_000, max_tokens=1),
}
