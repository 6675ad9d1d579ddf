"""Whatever is posted, the answer is a success or an OpenAI-shaped error of the client's own."""

import asyncio
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from parrot import Parrot

from splitwise.engine.model_files import read_stop_token_ids, resolve_model
from splitwise.gateway.http.exchange import HttpLimits
from splitwise.gateway.openai.app import App
from splitwise.gateway.openai.protocol import ChatRequest, CompletionRequest, TokenizeRequest
from splitwise.gateway.openai.validation import ModelFacts
from splitwise.gateway.text.codec import TextCodec
from splitwise.observe.metrics import Metrics

FOLDER = resolve_model()
PARROT = Parrot()
FACTS = ModelFacts("parrot", 64, 49152, tuple(read_stop_token_ids(FOLDER)))
APP = App(PARROT, TextCodec.load(FOLDER.path), FACTS, Metrics("parrot"), HttpLimits(), lambda: None)
PATHS = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/tokenize": TokenizeRequest,
}
NAMES = sorted({name for struct in PATHS.values() for name in struct.__struct_fields__})

anything: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 200)
    | st.floats()
    | st.floats(0, 2)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=12,
)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant", "king"]), "content": anything}
)
objects = st.fixed_dictionaries(
    {},
    optional={
        **{name: anything for name in NAMES if name != "stream"},
        "prompt": st.text(max_size=20) | st.lists(st.integers(-1, 60000)) | anything,
        "messages": st.lists(message | anything, max_size=3),
        "model": st.sampled_from(["parrot", None, "other"]),
        "stream": st.booleans(),
    },
)


async def post(path: str, body: bytes) -> tuple[int, bytes]:
    """One exchange with the application, without a server between."""
    parts = iter([{"type": "http.request", "body": body}])
    status, answer = 0, b""

    async def receive() -> dict[str, Any]:
        for part in parts:
            return part
        await asyncio.Event().wait()
        raise AssertionError

    async def send(sent: Any) -> None:
        nonlocal status, answer
        status = sent.get("status", status)
        answer += sent.get("body", b"")

    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    await asyncio.wait_for(APP(scope, receive, send), 20)
    return status, answer


def check(path: str, body: bytes) -> int:
    PARROT.reset()
    status, answer = asyncio.run(post(path, body))
    assert status == 200 or 400 <= status < 500, answer
    if status != 200:
        error = json.loads(answer)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert PARROT.requests == []
    assert all(stream.ended or stream.cancels for stream in PARROT.streams)
    return status


@given(st.sampled_from(list(PATHS)), objects)
@settings(max_examples=250, deadline=None)
def test_objects(path: str, body: dict[str, Any]) -> None:
    check(path, json.dumps(body).encode())


@given(st.sampled_from(list(PATHS)), st.sampled_from(NAMES), anything)
@settings(max_examples=500, deadline=None)
def test_one_field_of_a_good_request(path: str, name: str, value: Any) -> None:
    good: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
    if path == "/v1/completions":
        good = {"prompt": "hi"}
    assert check(path, json.dumps(good).encode()) == 200
    check(path, json.dumps(good | {name: value}).encode())


@given(st.sampled_from(list(PATHS)), st.binary(max_size=100))
@settings(max_examples=200, deadline=None)
def test_bytes(path: str, body: bytes) -> None:
    check(path, body)
