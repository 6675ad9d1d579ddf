"""The requests that load generators of others send, field by field, and what they count in answers.

Bodies as guidellm 0.8, aiperf 0.13 and vLLM 0.33's ``bench serve`` send them.
"""

import json
from typing import Any

import httpx
import pytest
from api_server import MODEL, Running

TEXT = "one two three"
TOKENS = 6
PARTS = [{"role": "user", "content": [{"type": "text", "text": TEXT}]}]
USAGE = {"include_usage": True}
EACH = USAGE | {"continuous_usage_stats": True}
COMPLETIONS = {
    "guidellm": {"stream_options": EACH, "ignore_eos": True},
    "aiperf": {"stream_options": USAGE, "ignore_eos": True, "min_tokens": TOKENS},
    "vllm": {
        "stream_options": USAGE,
        "ignore_eos": True,
        "repetition_penalty": 1.0,
        "logprobs": None,
    },
}
CHATS: dict[str, dict[str, Any]] = {
    "guidellm": {"messages": PARTS, "stream_options": EACH, "ignore_eos": True},
    "aiperf": {
        "messages": [{"role": "user", "content": TEXT}],
        "stream_options": USAGE,
        "ignore_eos": True,
        "min_tokens": TOKENS,
    },
    "vllm": {"messages": PARTS, "stream_options": USAGE, "ignore_eos": True},
}


def streamed(http: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of an answer, which must end as OpenAI's streams do."""
    with http.stream("POST", path, json=body | {"model": MODEL, "stream": True}) as answer:
        lines = [line for line in answer.iter_lines() if line]
        assert answer.status_code == 200, lines
        assert answer.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@pytest.mark.parametrize("name", COMPLETIONS)
def test_completions(server: Running, http: httpx.Client, name: str) -> None:
    body = COMPLETIONS[name] | {"prompt": TEXT, "max_tokens": TOKENS}
    *events, last = streamed(http, "/v1/completions", body)
    assert [bool(event["choices"][0]["text"]) for event in events] == [True] * TOKENS
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == TOKENS
    assert last["usage"]["prompt_tokens"] == len(server.codec._encode(TEXT, True))


@pytest.mark.parametrize("name", CHATS)
def test_chat(http: httpx.Client, name: str) -> None:
    body = CHATS[name] | {"max_completion_tokens": TOKENS}
    *events, last = streamed(http, "/v1/chat/completions", body)
    assert len(events) == TOKENS
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == TOKENS


@pytest.mark.parametrize(("path", "bodies"), [("chat/", CHATS), ("", COMPLETIONS)])
def test_usage_comes_with_every_event_where_asked(
    http: httpx.Client, path: str, bodies: dict[str, dict[str, Any]]
) -> None:
    """guidellm counts tokens by it."""
    body = bodies["guidellm"] | {"max_tokens": TOKENS}
    if not path:
        body |= {"prompt": TEXT}
    *events, _ = streamed(http, f"/v1/{path}completions", body)
    assert [event["usage"]["completion_tokens"] for event in events] == list(range(1, TOKENS + 1))


def test_one_connection_serves_many_requests(server: Running) -> None:
    body = {"prompt": TEXT, "max_tokens": 2, "stream": True, "model": MODEL}
    with httpx.Client(base_url=server.url, timeout=20) as http:
        ports = set()
        for _ in range(3):
            with http.stream("POST", "/v1/completions", json=body) as answer:
                answer.read()
                ports.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
    assert len(ports) == 1
    assert None not in ports


def test_the_model_is_found_by_asking(http: httpx.Client) -> None:
    """Clients that are told no model take the first of the list."""
    (card,) = http.get("/v1/models").json()["data"]
    assert card["object"] == "model"
    assert card["id"] == MODEL
    assert http.post("/v1/completions", json={"model": card["id"], "prompt": "a"}).is_success
