"""A request past its time is cancelled everywhere, and its client told so."""

import json
import time

import httpx
import msgspec
import openai
import pytest
from api_server import LIMITS, MODEL, Running, Serve
from parrot import Parrot

PLAIN = "/v1/completions"
PROMPT = "one two three four five six seven eight"


def freed(parrot: Parrot) -> bool:
    return all(stream.cancels == 1 and not stream.readers for stream in parrot.streams)


def timed_out(answer: httpx.Response) -> None:
    assert answer.status_code == 504
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == "timeout"


@pytest.mark.parametrize("after_tokens", [0, 4])
@pytest.mark.parametrize("n", [1, 3])
def test_the_clients_limit(server: Running, http: httpx.Client, n: int, after_tokens: int) -> None:
    server.parrot.hold(after_tokens)
    start_s = time.monotonic()
    body = {"prompt": PROMPT, "n": n}
    answer = http.post(PLAIN, json=body, headers={"X-Request-Timeout": "0.3"})
    assert 0.3 <= time.monotonic() - start_s < 3
    timed_out(answer)
    assert "0.3 s" in answer.json()["error"]["message"]
    assert len(server.parrot.streams) == n
    server.parrot.wait_for(freed)


def test_a_stream_ends_with_an_error_event(server: Running, http: httpx.Client) -> None:
    server.parrot.hold(3)
    body = {"prompt": PROMPT, "stream": True}
    answer = http.post(PLAIN, json=body, headers={"X-Request-Timeout": "0.3"})
    assert answer.status_code == 200
    events = [json.loads(e.removeprefix("data: ")) for e in answer.text.strip().split("\n\n")]
    assert len(events) == 4
    assert events[-1]["error"]["code"] == "timeout"
    server.parrot.wait_for(freed)


def test_the_official_client_does_not_ask_again(server: Running) -> None:
    server.parrot.hold(0)
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=2) as client,
        pytest.raises(openai.InternalServerError, match="longer than"),
    ):
        client.completions.create(
            model=MODEL, prompt=PROMPT, extra_headers={"X-Request-Timeout": "0.2"}
        )
    assert len(server.parrot.requests) == 1


@pytest.mark.parametrize("asked", [None, "1000"])
def test_the_servers_limit_holds_for_all(serve: Serve, asked: str | None) -> None:
    server = serve(msgspec.structs.replace(LIMITS, max_request_s=0.3))
    server.parrot.hold(1)
    headers = {} if asked is None else {"X-Request-Timeout": asked}
    answer = httpx.post(f"{server.url}{PLAIN}", json={"prompt": PROMPT}, headers=headers)
    timed_out(answer)
    server.parrot.wait_for(freed)


def test_time_enough(server: Running, http: httpx.Client) -> None:
    body = {"prompt": PROMPT, "max_tokens": 8}
    answer = http.post(PLAIN, json=body, headers={"X-Request-Timeout": "20.5"})
    assert answer.json()["choices"][0]["text"] == PROMPT
    assert server.parrot.cancelled() == []


@pytest.mark.parametrize("value", ["", "soon", "0", "-1", "nan", "inf", "1e999", "30s"])
def test_what_is_no_time(server: Running, http: httpx.Client, value: str) -> None:
    answer = http.post(PLAIN, json={"prompt": "a"}, headers={"X-Request-Timeout": value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "X-Request-Timeout"
    assert server.parrot.requests == []
