"""Large bodies: what holds too many values is refused by name before any is made, what does not is
decoded as a small one is."""

import asyncio
import json
from typing import Any

import httpx
import msgspec
import pytest
from api_server import Running, Serve
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwise.gateway.http.exchange import HttpLimits
from splitwise.gateway.openai import protocol
from splitwise.gateway.openai.bodies import LARGE_BODY_BYTES, BodyDecoder
from splitwise.gateway.openai.errors import ApiError

CHAT = "/v1/chat/completions"
PLAIN = "/v1/completions"
MANY = 100_000
USER = {"role": "user", "content": ""}
LIMITS = HttpLimits()
ROOMY = HttpLimits(max_body_bytes=LIMITS.max_body_bytes)
IDS = [300] * 200_000
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def large(serve: Serve) -> Running:
    """A server with the default limit on a body's size."""
    return serve(limits=ROOMY)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": [USER] * MANY}, "messages"),
        (CHAT, {"messages": [USER] * 5000}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}] * MANY}]}, "messages"),
        ("/tokenize", {"messages": [USER] * MANY}, "messages"),
        (PLAIN, {"prompt": [""] * MANY}, "prompt"),
        (PLAIN, {"prompt": IDS}, "prompt"),
        (PLAIN, {"prompt": [IDS[:2000]] * 100}, "prompt"),
        (PLAIN, {"prompt": ["hi", *IDS]}, "prompt"),
        (PLAIN, {"prompt": "hi", "stop": ["a"] * 20_000}, "stop"),
        (PLAIN, {"prompt": "hi", "stop_token_ids": IDS}, "stop_token_ids"),
        (PLAIN, {"prompt": "hi", "logit_bias": {str(n): 1 for n in range(20_000)}}, "logit_bias"),
        (PLAIN, {"prompt": "hi", "tools": [{}] * MANY}, "tools"),
        (PLAIN, {"prompt": "hi", "tools": [{"a": 1}] * 30_000}, "tools"),
        (CHAT, {"messages": HI, "tool_choice": "auto", "tools": IDS}, "tools"),
        (CHAT, {"messages": HI, "chat_template_kwargs": {"x": IDS}}, "chat_template_kwargs"),
        (CHAT, {"messages": [HI[0] | {"tool_calls": IDS}]}, "messages[0].tool_calls"),
        ("/detokenize", {"tokens": IDS}, "tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_too_many_values_are_refused_by_name(
    large: Running, path: str, body: dict[str, Any], param: str
) -> None:
    answer = httpx.post(large.url + path, json=body, timeout=30)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert large.parrot.requests == []


def test_many_values_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal does not depend on decoding: there is no decoder."""
    decoder = BodyDecoder(protocol.ChatRequest)
    monkeypatch.setattr(decoder, "_decoder", None)
    monkeypatch.setattr(decoder, "_scanner", None)
    body = json.dumps({"messages": [USER] * MANY}).encode()
    with pytest.raises(ApiError, match="50000 strings"):
        asyncio.run(decoder.decode(body, 1000))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": HI, "tool_choice": "none", "tools": [{"a": 1}] * 10_000}),
        (CHAT, {"messages": HI * 150, "x": IDS[:100_000]}),
        (PLAIN, {"prompt": "hi", "x": {"deep": IDS}, "user": "u" * 300_000}),
        (PLAIN, {"prompt": ["1," * 700] * 128}),
    ],
    ids=["tools", "messages", "unknown fields", "commas in texts"],
)
def test_large_bodies_are_taken(large: Running, path: str, body: dict[str, Any]) -> None:
    answer = httpx.post(large.url + path, json=body | {"max_tokens": 1}, timeout=60)
    assert answer.status_code == 200, answer.text


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": TEXTS, "content": TEXTS | st.lists(st.fixed_dictionaries({"type": TEXTS}))}
    ),
    max_size=5,
)
FIELDS = st.fixed_dictionaries(
    {"messages": MESSAGES},
    optional={
        "stop": st.none() | TEXTS | st.lists(TEXTS, max_size=4),
        "n": st.none() | st.integers(1, 9),
        "chat_template_kwargs": st.dictionaries(TEXTS, TEXTS | st.integers(0, 9)),
        "user": TEXTS,
        "temperature": st.floats(0, 2) | st.just("hot"),
        "tools": st.lists(st.integers(0, 9)),
    },
)


@given(fields=FIELDS, indent=st.sampled_from([None, 1]), ascii=st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_large_body_is_decoded_as_it_is_without_its_padding(
    fields: dict[str, Any], indent: int | None, ascii: bool
) -> None:
    padded = {"padding": "x" * LARGE_BODY_BYTES, **fields}
    body = json.dumps(padded, indent=indent, ensure_ascii=ascii).encode()
    decoder = BodyDecoder(protocol.ChatRequest)
    try:
        expected = msgspec.json.decode(json.dumps(fields), type=protocol.ChatRequest)
    except msgspec.ValidationError:
        with pytest.raises(ApiError):
            asyncio.run(decoder.decode(body, 1000))
        return
    found = asyncio.run(decoder.decode(body, 1000))
    unread = {"tools": msgspec.UNSET}
    plain = msgspec.structs.asdict(found) | unread
    assert plain == msgspec.structs.asdict(expected) | unread
    if "tools" in fields:
        assert msgspec.json.decode(found.tools) == fields["tools"]


@pytest.mark.parametrize("body", [b"{" * 70_000, b'{"a":' + b" " * 70_000, b'"' + b"\xff" * 70_000])
def test_a_large_body_that_is_no_json(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        asyncio.run(BodyDecoder(protocol.ChatRequest).decode(body, 1000))
    assert caught.value.status == 400


def test_the_description_says_how_many(server: Running) -> None:
    schemas = httpx.get(server.url + "/openapi.json").json()["components"]["schemas"]
    assert schemas["ChatRequest"]["properties"]["messages"]["maxItems"] == 4096
    assert schemas["DetokenizeRequest"]["properties"]["tokens"]["maxItems"] == 131_072
