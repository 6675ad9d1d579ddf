"""Clients that go away, stop reading, or are still there when the server stops."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import httpx
import openai
import pytest
import uvloop
from api_server import MODEL, Running
from parrot import Parrot

from splitwise.gateway.http.exchange import DEPARTURE, Departure, HttpLimits
from splitwise.gateway.http.server import listen, serve_http
from splitwise.gateway.openai.app import App
from splitwise.gateway.openai.validation import ModelFacts
from splitwise.gateway.text.codec import TextCodec
from splitwise.observe.metrics import Metrics

PROMPT = "one two three four five six seven eight nine ten"


def post(server: Running, **fields: object) -> socket.socket:
    """Send a completion request over a socket of its own, which the caller may drop."""
    body = json.dumps({"prompt": PROMPT} | fields).encode()
    client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    client.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: "
        + str(len(body)).encode()
        + b"\r\n\r\n"
        + body
    )
    return client


def all_cancelled_once(parrot: Parrot) -> bool:
    return all(stream.cancels == 1 and not stream.readers for stream in parrot.streams)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after_tokens", [0, 4])
def test_leaving_cancels_every_choice(
    server: Running, n: int, stream: bool, after_tokens: int
) -> None:
    server.parrot.hold(after_tokens)
    with closing(post(server, n=n, stream=stream)) as client:
        server.parrot.wait_for(
            lambda parrot: (
                len(parrot.streams) == n
                and all(s.said == after_tokens and s.readers for s in parrot.streams)
            )
        )
        if stream and after_tokens:
            assert b"text/event-stream" in client.recv(65536)
        assert server.parrot.cancelled() == []
    server.parrot.wait_for(all_cancelled_once)


def test_leaving_while_the_body_is_sent(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert server.parrot.requests == []


def test_one_that_leaves_does_not_disturb_others(server: Running, client: openai.OpenAI) -> None:
    server.parrot.hold(2)
    with closing(post(server, stream=True)):
        server.parrot.wait_for(lambda parrot: len(parrot.streams) == 1)
        stays = iter(
            client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=10, stream=True)
        )
        first = next(stays)
    server.parrot.wait_for(lambda parrot: parrot.streams[0].cancels == 1)
    server.parrot.release()
    assert first.choices[0].text + "".join(c.choices[0].text for c in stays) == PROMPT
    assert server.parrot.streams[1].cancels == 0


def test_a_connection_serves_on_after_an_answer(server: Running) -> None:
    with httpx.Client(base_url=server.url) as http:
        for _ in range(3):
            answer = http.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 10})
            assert answer.json()["choices"][0]["text"] == PROMPT
    assert server.parrot.cancelled() == []


def test_a_client_that_does_not_read_is_not_buffered_for(
    codec: TextCodec, facts: ModelFacts
) -> None:
    """The application over an ASGI server whose ``send`` never gets room takes no more tokens."""
    parrot = Parrot()
    app = App(parrot, codec, facts, Metrics(MODEL), HttpLimits(), lambda: None)
    sent: list[str] = []

    async def exchange() -> None:
        stalled = asyncio.Event()
        departure = Departure()
        body = json.dumps({"prompt": PROMPT, "stream": True, "max_tokens": 1000}).encode()

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": body}

        async def send(message: object) -> None:
            sent.append(str(message))
            if len(sent) == 3:
                stalled.set()
                await asyncio.Event().wait()

        scope: dict[str, object] = {"type": "http", "method": "POST", "headers": []}
        scope["path"] = "/v1/completions"
        scope["extensions"] = {DEPARTURE: departure}
        task = asyncio.create_task(app(scope, receive, send))  # type: ignore[arg-type]
        await asyncio.wait_for(stalled.wait(), 10)
        for _ in range(100):  # turns of the event loop in which it could have gone on
            await asyncio.sleep(0)
        assert (len(sent), parrot.streams[0].said) == (3, 2)
        departure.happen()
        await asyncio.wait_for(task, 10)

    asyncio.run(exchange())
    assert parrot.streams[0].cancels == 1


@pytest.fixture
def short_lived(codec: TextCodec, facts: ModelFacts) -> Iterator[tuple[Running, threading.Event]]:
    """A server that one test may stop by setting the event."""
    limits = HttpLimits(drain_s=1.0, max_request_s=0.5)
    parrot, metrics = Parrot(), Metrics(MODEL)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    please_stop, ended = threading.Event(), threading.Event()

    async def serve() -> None:
        stop = asyncio.Event()
        app = App(parrot, codec, facts, metrics, limits, lambda: None)
        serving = asyncio.create_task(serve_http(app, listener, limits, stop))
        await asyncio.to_thread(please_stop.wait)
        stop.set()
        await serving
        assert asyncio.all_tasks() == {asyncio.current_task()}
        ended.set()

    thread = threading.Thread(target=lambda: uvloop.run(serve()))
    thread.start()
    yield Running(port, parrot, metrics, lambda: None, facts, codec), please_stop  # type: ignore[arg-type]
    please_stop.set()
    thread.join(20)
    assert ended.is_set(), "the server did not end cleanly"


def test_a_request_that_takes_too_long(short_lived: tuple[Running, threading.Event]) -> None:
    server, _ = short_lived
    server.parrot.hold(1)
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": PROMPT}, timeout=20)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "timeout"
    server.parrot.wait_for(all_cancelled_once)


def test_stopping_ends_what_still_runs(codec: TextCodec, facts: ModelFacts) -> None:
    """A stream that outlives the grace period is told so, and its tokens are freed."""
    parrot = Parrot()
    parrot.hold(1)

    async def serve() -> str:
        limits = HttpLimits(drain_s=1.0)
        listener, stop = listen("127.0.0.1", 0), asyncio.Event()
        port = listener.getsockname()[1]
        app = App(parrot, codec, facts, Metrics(MODEL), limits, lambda: None)
        serving = asyncio.create_task(serve_http(app, listener, limits, stop))
        async with (
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http,
            http.stream("POST", "/v1/completions", json={"prompt": PROMPT, "stream": True}) as got,
        ):
            stop.set()
            text = "".join([part async for part in got.aiter_text()])
        await asyncio.wait_for(serving, 20)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return text

    events = uvloop.run(serve()).strip().split("\n\n")
    assert len(events) == 2
    assert "the server stops" in json.loads(events[-1].removeprefix("data: "))["error"]["message"]
    assert parrot.streams[0].cancels == 1


def test_a_taken_port_is_named() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            listen("127.0.0.1", port)
