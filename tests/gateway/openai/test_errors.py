"""Bad input, trouble on the cluster, and the server's other routes."""

import asyncio
import json
import socket
from typing import Any

import httpx
import openai
import pytest
from api_server import LIMITS, MODEL, Running
from parrot import Parrot

from splitwise import __version__
from splitwise.gateway.http.exchange import HttpLimits
from splitwise.gateway.openai.app import App
from splitwise.gateway.openai.validation import ModelFacts
from splitwise.gateway.text.codec import TextCodec
from splitwise.observe.metrics import Metrics
from splitwise.protocol.generation import GenerationFailed, Overloaded, Unavailable

CHAT = "/v1/chat/completions"
PLAIN = "/v1/completions"
USER = [{"role": "user", "content": "hi"}]


def refused(
    http: httpx.Client, path: str, body: object, status: int, param: str | None
) -> dict[str, Any]:
    """Post ``body`` and check that the answer is an error in OpenAI's shape."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = http.post(path, content=content)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    assert error["message"]
    return dict(error)


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("temperature", -0.1, "temperature"),
        ("temperature", 2.1, "temperature"),
        ("temperature", "hot", "temperature"),
        ("top_p", 0, "top_p"),
        ("top_p", 1.5, "top_p"),
        ("top_k", -2, "top_k"),
        ("top_k", 2**40, "top_k"),
        ("min_p", 1.01, "min_p"),
        ("repetition_penalty", 0, "repetition_penalty"),
        ("repetition_penalty", 1e300, "repetition_penalty"),
        ("presence_penalty", 3, "presence_penalty"),
        ("frequency_penalty", -2.5, "frequency_penalty"),
        ("n", 0, "n"),
        ("n", 10**9, "n"),
        ("n", True, "n"),
        ("seed", 2**63, "seed"),
        ("seed", 1.5, "seed"),
        ("max_tokens", 0, "max_tokens"),
        ("max_tokens", -5, "max_tokens"),
        ("max_tokens", "many", "max_tokens"),
        ("stop", ["x"] * 10_000, "stop"),
        ("stop", ["ok", ""], "stop[1]"),
        ("stop", "x" * 10_000, "stop[0]"),
        ("stop", [1], "stop[0]"),
        ("stop_token_ids", [-1], "stop_token_ids[0]"),
        ("stop_token_ids", [1, 49152], "stop_token_ids[1]"),
        ("stop_token_ids", list(range(1000)), "stop_token_ids"),
        ("stream_options", {"include_usage": True}, "stream_options"),
        ("logit_bias", {"5": 100}, "logit_bias"),
        ("best_of", 2, "best_of"),
        ("best_of", True, "best_of"),
        ("min_tokens", 3, "min_tokens"),
        ("guided_json", {"type": "object"}, "guided_json"),
        ("response_format", {"type": "json_object"}, "response_format"),
    ],
)
def test_fields_both_share(
    server: Running, http: httpx.Client, field: str, value: object, param: str
) -> None:
    for path, body in ((CHAT, {"messages": USER}), (PLAIN, {"prompt": "hi"})):
        error = refused(http, path, body | {field: value}, 400, param)
        assert field in error["message"]
    assert server.parrot.requests == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {
                "messages": [
                    *USER,
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
                ]
            },
            "messages[1].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
            "messages[0].tool_calls",
        ),
        ({"messages": USER, "top_logprobs": 3}, "top_logprobs"),
        ({"messages": USER, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": USER, "logprobs": 3}, "logprobs"),
        ({"messages": USER, "max_completion_tokens": 0}, "max_completion_tokens"),
        ({"messages": USER, "tools": [{"type": "function"}]}, "tools"),
        ({"messages": USER, "tool_choice": "required"}, "tool_choice"),
        ({"messages": USER, "audio": {"voice": "parrot"}}, "audio"),
        ({"messages": USER, "modalities": ["text", "audio"]}, "modalities"),
        ({"messages": USER, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ],
)
def test_chat(server: Running, http: httpx.Client, body: dict[str, object], param: str) -> None:
    refused(http, CHAT, body, 400, param)
    assert server.parrot.requests == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["ok", ""]}, "prompt[1]"),
        ({"prompt": [1, "two"]}, "prompt"),
        ({"prompt": [[1], [49152]]}, "prompt[1][0]"),
        ({"prompt": [1, -1]}, "prompt[1]"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["x"] * 200}, "prompt"),
        ({"prompt": ["x"] * 100, "n": 2}, "prompt"),
        ({"prompt": "hi", "logprobs": 21}, "logprobs"),
        ({"prompt": "hi", "logprobs": -1}, "logprobs"),
        ({"prompt": "hi", "echo": True}, "echo"),
        ({"prompt": "hi", "suffix": "!"}, "suffix"),
    ],
)
def test_plain(server: Running, http: httpx.Client, body: dict[str, object], param: str) -> None:
    refused(http, PLAIN, body, 400, param)
    assert server.parrot.requests == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"hi"',
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "hi", "temperature": NaN}',
        b'{"prompt": "hi", "temperature": 1e999}',
        b'{"prompt": "hi", "n": ' + b"9" * 100_000 + b"}",
        b'{"prompt": "hi", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": "hi"} {"prompt": "ho"}',
    ],
    ids=lambda body: repr(body[:30]),
)
def test_malformed_bodies(http: httpx.Client, body: bytes) -> None:
    answer = http.post(PLAIN, content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_prompts_over_the_context(server: Running, http: httpx.Client) -> None:
    context = server.facts.max_context_tokens
    for body in (
        {"prompt": [5] * context},
        {"prompt": [5] * (context - 10), "max_tokens": 11},
        {"prompt": "word " * 3 * context},
        {"prompt": "word " * 20 * context},
        {"prompt": "hi", "max_tokens": 10**30},
    ):
        assert refused(http, PLAIN, body, 400, "prompt")["code"] == "context_length_exceeded"
    assert server.parrot.requests == []
    fits = http.post(PLAIN, json={"prompt": [5] * (context - 10), "max_tokens": 10})
    assert fits.json()["usage"]["completion_tokens"] == 10
    # Sixteen is only the default: it gives way to the context.
    fits = http.post(PLAIN, json={"prompt": [5] * (context - 10)})
    assert fits.json()["usage"]["completion_tokens"] == 10
    long_chat = {"messages": [{"role": "user", "content": "word " * 3 * context}]}
    assert refused(http, CHAT, long_chat, 400, "messages")["code"] == "context_length_exceeded"


def test_the_official_client_sees_its_own_exceptions(
    server: Running, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "x"}])
    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="temperature is 9"):
        client.completions.create(model=MODEL, prompt="x", temperature=9)
    server.parrot.refuse_with = Overloaded("3 requests wait", 1.2)
    with pytest.raises(openai.RateLimitError) as busy:
        client.completions.create(model=MODEL, prompt="x")
    assert busy.value.response.headers["retry-after"] == "2"
    server.parrot.refuse_with = Unavailable("no token machine")
    with pytest.raises(openai.InternalServerError, match="no token machine") as gone:
        client.completions.create(model=MODEL, prompt="x")
    assert gone.value.status_code == 503


def test_a_refusal_frees_the_choices_before_it(server: Running, http: httpx.Client) -> None:
    server.parrot.refuse_with = Overloaded("full", 1)
    server.parrot.refuse_after_requests = 2
    refused(http, PLAIN, {"prompt": "hi", "n": 4}, 429, None)
    assert [stream.cancels for stream in server.parrot.streams] == [1, 1]


def test_failure_before_the_first_token(
    server: Running, http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    server.parrot.fail_after_tokens = 0
    for stream in (False, True):
        body = {"prompt": "hi there", "stream": stream}
        error = refused(http, PLAIN, body, 500, None)
        assert "fell off its perch" not in error["message"]
    assert caplog.text.count("fell off its perch") == 2


def test_failure_in_the_stream(
    server: Running, http: httpx.Client, client: openai.OpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    server.parrot.fail_after_tokens = 2
    answer = http.post(PLAIN, json={"prompt": "one two three", "stream": True})
    events = answer.text.strip().split("\n\n")
    assert len(events) == 3
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert error["code"] == "generation_failed"
    assert "perch" not in answer.text
    # The log says what failed, under the id that the client was told.
    assert answer.headers["x-request-id"] in error["message"]
    [said] = [r.getMessage() for r in caplog.records if "fell off its perch" in r.getMessage()]
    assert answer.headers["x-request-id"] in said
    with pytest.raises(openai.APIError, match="every machine that tried"):
        list(client.completions.create(model=MODEL, prompt="one two three", stream=True))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        GenerationFailed("given up after 8 failures; last: token-3: CUDA error at /root/w.py:7"),
        RuntimeError("CUDA error: token-3 lost /root/w.py:7"),
        OSError(28, "No space left on device", "/root/w.py:7 token-3 CUDA"),
        KeyError("token-3 CUDA /root/w.py:7"),
    ],
)
def test_what_failed_inside_is_for_the_log_alone(
    server: Running,
    http: httpx.Client,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    stream: bool,
) -> None:
    server.parrot.refuse_with = error
    answer = http.post(PLAIN, json={"prompt": "hi", "stream": stream})
    assert answer.status_code == 500
    for secret in ("CUDA", "/root", "token-3"):
        assert secret not in answer.text and secret in caplog.text
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]


def test_a_failing_choice_stops_the_others(server: Running, http: httpx.Client) -> None:
    server.parrot.fail_after_tokens = 2
    refused(http, PLAIN, {"prompt": "one two three", "n": 3}, 500, None)
    assert all(stream.cancels == 1 for stream in server.parrot.streams)


def test_a_bug_is_logged_and_not_shown(
    server: Running, http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    server.parrot.refuse_with = ZeroDivisionError("secret detail")
    answer = http.post(PLAIN, json={"prompt": "hi"}, headers={"X-Request-Id": "bug-7"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["error"]["code"] == "internal_error"
    (record,) = [entry for entry in caplog.records if entry.levelname == "ERROR"]
    assert "bug-7" in record.getMessage()
    assert record.exc_info is not None
    # A stack trace would help nobody who sees only this.
    assert "secret detail" in str(record.exc_info[1])


# Bodies that are too large or too slow.


def test_a_body_over_the_limit(http: httpx.Client) -> None:
    body = b'{"prompt": "' + b"x" * LIMITS.max_body_bytes + b'"}'
    error = refused(http, PLAIN, body, 413, None)
    assert str(LIMITS.max_body_bytes) in error["message"]


def test_a_body_over_the_limit_without_a_length(http: httpx.Client) -> None:
    parts = (b"x" * 65536 for _ in range(64))
    answer = http.post(PLAIN, content=parts)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


def test_a_length_over_the_limit_is_refused_before_the_body(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n"
        )
        assert b" 413 " in client.recv(4096)


def test_a_body_that_does_not_arrive(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        assert b" 408 " in client.recv(4096)


def test_an_upgrade_to_http2_is_refused_by_name(http: httpx.Client) -> None:
    """Java's own client asks for one with every request unless it is told not to."""
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAM"}
    answer = http.post(PLAIN, json={"prompt": "hi"}, headers=headers)
    assert answer.status_code == 400
    assert "HTTP/1.1" in answer.json()["error"]["message"]


def test_a_refused_body_is_read_out_before_the_connection_closes(
    codec: TextCodec, facts: ModelFacts
) -> None:
    """A close with unread data would reset the connection, and the client lose the answer."""
    log: list[str] = []
    parts = [{"type": "http.request", "body": b"x" * 80, "more_body": i < 9} for i in range(10)]

    async def receive() -> Any:
        log.append("read")
        return parts.pop(0)

    async def send(message: Any) -> None:
        kind = message["type"].removeprefix("http.response.")
        log.append("unfinished body" if message.get("more_body") else kind)

    limits = HttpLimits(max_body_bytes=100)
    app = App(Parrot(), codec, facts, Metrics(MODEL), limits, lambda: None)
    scope = {"type": "http", "method": "POST", "path": PLAIN, "headers": []}
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    assert log == ["read", "read", "start", "unfinished body", *["read"] * 8, "body"]


# Routes.


def test_unknown_paths_and_methods(http: httpx.Client) -> None:
    assert http.get("/v1/nothing").status_code == 404
    assert http.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    answer = http.get(PLAIN)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert http.delete(f"/v1/models/{MODEL}").status_code == 405


def test_health(server: Running, http: httpx.Client) -> None:
    assert http.get("/health").status_code == 200
    assert http.head("/health").status_code == 200
    server.health.reason = "no token machine is connected"
    answer = http.get("/health")
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "no token machine is connected"


def test_version(http: httpx.Client) -> None:
    assert http.get("/version").json() == {"version": __version__}


def test_request_id(server: Running, http: httpx.Client) -> None:
    answer = http.post(PLAIN, json={"prompt": "hi"}, headers={"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    http.post(PLAIN, json={"prompt": "hi"}, headers={"X-Request-Id": "mine-1"})
    first, second = (request.request_id for request in server.parrot.requests)
    assert first.startswith("mine-1-")
    assert first != second  # a client that repeats itself must not confuse the cluster
    for unusable in ("x" * 1000, "two words", ""):
        answer = http.get("/version", headers={"X-Request-Id": unusable})
        assert answer.headers["x-request-id"] != unusable
        assert 0 < len(answer.headers["x-request-id"]) < 100
    error = http.post(PLAIN, content=b"{", headers={"X-Request-Id": "mine-2"})
    assert error.headers["x-request-id"] == "mine-2"


def test_tokenize_and_back(server: Running, http: httpx.Client) -> None:
    text = "naïve 🦜 <|im_end|>"
    answer = http.post(
        "/tokenize", json={"model": MODEL, "prompt": text, "return_token_strs": True}
    ).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == server.facts.max_context_tokens
    assert answer["token_strs"][-1] == "<|im_end|>"
    back = http.post("/detokenize", json={"model": MODEL, "tokens": answer["tokens"]}).json()
    assert back == {"prompt": text}
    http.post(CHAT, json={"messages": USER, "max_tokens": 1})
    chat = http.post("/tokenize", json={"messages": USER}).json()
    assert chat["tokens"] == server.parrot.requests[0].prompt
    assert chat["token_strs"] is None


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": USER}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [1, 2**40]}, "tokens[1]"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
    ],
)
def test_bad_text_requests(
    http: httpx.Client, path: str, body: dict[str, object], param: str
) -> None:
    refused(http, path, body, 400, param)
