"""What one request asks for is done a bit a turn of the event loop, or in threads."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from api_server import MODEL, Serve
from parrot import Parrot

from splitwise.gateway import pace
from splitwise.gateway.http.connection import Connection
from splitwise.gateway.http.exchange import HttpLimits
from splitwise.gateway.openai.app import App
from splitwise.gateway.openai.validation import ModelFacts
from splitwise.gateway.pace import Pace, Turns
from splitwise.gateway.text.codec import TextCodec
from splitwise.observe.metrics import Metrics

PLAIN = "/v1/completions"
CHAT = "/v1/chat/completions"
LOGPROBS = {"max_tokens": 300, "logprobs": 5, "ignore_eos": True}
PROMPT = [300 + place for place in range(50)]


@asynccontextmanager
async def turns_counted() -> AsyncIterator[list[int]]:
    """A list whose only number grows with every turn of the loop."""
    count = [0]

    async def tick() -> None:
        while True:
            await asyncio.sleep(0)
            count[0] += 1

    ticking = asyncio.create_task(tick())
    try:
        yield count
    finally:
        ticking.cancel()


Ask = Callable[[str, dict[str, Any]], Awaitable[tuple[int, bytes]]]


@pytest.fixture
def parrot() -> Parrot:
    return Parrot()


@pytest.fixture
def ask(codec: TextCodec, facts: ModelFacts, parrot: Parrot) -> Ask:
    """Asks the application on the test's own loop."""
    app = App(parrot, codec, facts, Metrics(MODEL), HttpLimits(), lambda: None)

    async def ask(path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        sent: list[dict[str, Any]] = []
        method = "POST" if body else "GET"
        scope = {"type": "http", "method": method, "path": path, "headers": []}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": json.dumps(body).encode()}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])

    return ask


@pytest.mark.parametrize(
    ("path", "body", "at_least"),
    [
        (PLAIN, {"prompt": ["many words " * 300] * 100, "max_tokens": 1}, 200),
        (PLAIN, {"prompt": [[300] * 1000] * 100, "max_tokens": 1}, 200),
        (PLAIN, {"prompt": "hi", "n": 128, "max_tokens": 1}, 200),
        (PLAIN, {"prompt": PROMPT, **LOGPROBS}, 300),
        (CHAT, {"messages": [{"role": "user", "content": "hi"}], "logprobs": True} | {
            "top_logprobs": 5, "max_tokens": 300, "ignore_eos": True}, 300),
        ("/tokenize", {"prompt": "a b c " * 20_000, "return_token_strs": True}, 50),
    ],
    ids=["prompts", "token ids", "answers", "logprobs", "chat logprobs", "token strings"],
)  # fmt: skip
async def test_the_parts_of_a_long_request_are_turns_of_their_own(
    ask: Ask, parrot: Parrot, path: str, body: dict[str, Any], at_least: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With no time at all in a turn each part has one of its own; a chunk brings everything."""
    monkeypatch.setattr(pace, "TURN_S", 0.0)
    parrot.chunk_sizes = [1000]
    async with turns_counted() as count:
        status, answer = await ask(path, body)
        assert status == 200, answer
        assert count[0] >= at_least


async def test_of_all_that_rest_one_goes_on_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "TURN_S", 0.0)
    turns, did = Turns(), list[tuple[int, int]]()

    async def work(name: int) -> None:
        own = turns.pace()
        for _ in range(5):
            await own.rest()
            did.append((count[0], name))

    async with turns_counted() as count:
        await asyncio.gather(*(work(name) for name in range(20)))
    in_turn = [turn for turn, _ in did]
    assert max(in_turn.count(turn) for turn in in_turn) == 1
    # They take turns: nobody is done before everybody has begun.
    assert {name for _, name in did[:20]} == set(range(20))


async def test_a_task_that_has_time_left_does_not_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "TURN_S", 1000.0)
    own = Turns().pace()
    async with turns_counted() as count:
        for _ in range(1000):
            await own.rest()
        assert count[0] == 0


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "hi"}] * 200}, "render_chat"),
        (CHAT, {"messages": [{"role": "user", "content": "hi" * 20_000}]}, "render_chat"),
        (PLAIN, {"prompt": "hi " * 3000}, "_encode_long"),
        ("/detokenize", {"tokens": [300] * 50_000}, "_decode"),
    ],
)
async def test_what_takes_long_in_one_piece_has_a_thread(
    ask: Ask, codec: TextCodec, path: str, body: dict[str, Any], name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen: list[int] = []
    original = getattr(codec, name)

    def watched(*given: Any) -> Any:
        seen.append(threading.get_ident())
        return original(*given)

    monkeypatch.setattr(codec, name, watched)
    await ask(path, body | {"max_tokens": 1})
    assert seen and threading.get_ident() not in seen


async def test_metrics_are_written_in_a_thread(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def render(_: Metrics) -> bytes:
        seen.append(threading.get_ident())
        return b"metrics"

    monkeypatch.setattr(Metrics, "render", render)
    assert await ask("/metrics", {}) == (200, b"metrics")
    assert seen and threading.get_ident() not in seen


async def test_long_texts_do_not_wait_for_each_other(
    codec: TextCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two meet while both are being encoded."""
    both = threading.Barrier(2, timeout=20)
    monkeypatch.setattr(codec, "_encode_long", lambda *_: [both.wait()])
    found = await asyncio.gather(*(codec.encode("x" * 100_000, True, 10) for _ in range(2)))
    assert sorted(found) == [[0], [1]]


def test_a_chunk_of_thousands_comes_in_pieces(serve: Serve) -> None:
    """As a client that read slowly finds it: no event is made of all of it."""
    server = serve()
    server.parrot.chunk_sizes = [1000]
    body = {"prompt": PROMPT, "stream": True, "ignore_eos": True, "return_token_ids": True}
    for more, most in (({"max_tokens": 1000}, 256), ({"max_tokens": 1000, "logprobs": 2}, 32)):
        answer = httpx.post(server.url + PLAIN, json=body | more, timeout=30)
        events = [
            json.loads(line.removeprefix("data: "))["choices"][0]
            for line in answer.text.split("\n\n")
            if line.startswith("data: {")
        ]
        ids = [event["token_ids"] for event in events]
        assert max(map(len, ids)) == most
        assert [token for each in ids for token in each] == (PROMPT * 20)
        assert [event["finish_reason"] for event in events if event["finish_reason"]] == ["length"]


def exchange(port: int, sent: bytes, answers: int) -> bytes:
    """Everything that comes until so many answers have."""
    came = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        sending = threading.Thread(target=connection.sendall, args=(sent,))
        sending.start()
        while came.count(b"HTTP/1.1 ") < answers or not came.endswith(b"}"):
            part = connection.recv(65536)
            assert part, came[-500:]
            came += part
        sending.join()
    return came


def test_what_is_read_at_once_is_parsed_in_pieces(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of requests in one write, and of chunks in one body."""
    parsed: list[int] = []
    parse = Connection._parse

    def watched(connection: Connection, data: bytes) -> None:
        parsed.append(len(data))
        parse(connection, data)

    monkeypatch.setattr(Connection, "_parse", watched)
    server = serve()
    one = b"GET /version HTTP/1.1\r\nhost: here\r\n\r\n"
    came = exchange(server.port, one * 5000, 5000)
    assert came.count(b"HTTP/1.1 200 OK") == 5000
    text = json.dumps({"prompt": "one two three", "max_tokens": 3}).encode() + b" " * 30_000
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in text) + b"0\r\n\r\n"
    head = b"POST /v1/completions HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n"
    came = exchange(server.port, head + chunks + one, 2)
    assert came.count(b"HTTP/1.1 200 OK") == 2 and b"one two three" in came
    assert max(parsed) <= 8192 and sum(parsed) == 5001 * len(one) + len(head + chunks)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_ordinary_request_never_rests(
    ask: Ask, parrot: Parrot, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it waits for its tokens: with all requests resting for that, one a turn, the
    server would do half as many."""
    rests: list[Pace] = []

    async def rest(self: Pace) -> None:
        rests.append(self)

    monkeypatch.setattr(Pace, "rest", rest)
    parrot.chunk_sizes = [1, 3]
    status, _ = await ask(PLAIN, {"prompt": "one two three", "max_tokens": 50, "stream": stream})
    assert status == 200 and not rests


async def test_waiting_is_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: clock[0])
    own = Turns().pace()
    async with turns_counted() as count:
        clock[0] += 1  # it waits
        own.begin()
        await own.rest()
        assert count[0] == 0
        for _ in range(5):
            clock[0] += 1  # it works
            await own.rest()
        assert count[0] > 0
