"""Bounds on what a connection may send and how slowly, seen from raw sockets."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import msgspec
import openai
import pytest
from api_server import LIMITS, MODEL, Running, Serve

BRIEF = dict.fromkeys(("header_timeout_s", "body_timeout_s", "send_timeout_s"), 0.5)
TIGHT = msgspec.structs.replace(
    LIMITS, max_body_bytes=4096, max_header_bytes=2048, max_connections=3, **BRIEF
)
GET = b"GET /version HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture
def tight(serve: Serve) -> Running:
    return serve(TIGHT)


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def answers(client: socket.socket) -> Iterator[tuple[int, dict[str, str], Any]]:
    """Every answer until the server closes: status, headers, JSON body."""
    with client.makefile("rb") as lines:
        while status := lines.readline():
            headers = {}
            while line := lines.readline().strip():
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            body = lines.read(int(headers["content-length"]))
            yield int(status.split()[1]), headers, json.loads(body)


def refusal(client: socket.socket, status: int) -> dict[str, str]:
    """Check that the only answer is an error of OpenAI's shape, and that the server closes."""
    ((got, headers, body),) = answers(client)
    assert got == status, body
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert headers["connection"] == "close"
    return headers


def trickle(client: socket.socket, data: bytes, limit_s: float = 5.0) -> None:
    """Send byte by byte for as long as the server takes them."""
    end_s = time.monotonic() + limit_s
    client.settimeout(0.05)
    for byte in data:
        try:
            client.sendall(bytes([byte]))
            if client.recv(1, socket.MSG_PEEK):
                break
        except TimeoutError:
            pass
        assert time.monotonic() < end_s, "the server goes on listening"
    client.settimeout(10)


# Size.


def test_headers_that_are_just_small_enough(tight: Running) -> None:
    with closing(connect(tight)) as client:
        client.sendall(GET + b"Connection: close\r\nX: " + b"a" * 1900 + b"\r\n\r\n")
        assert [status for status, _, _ in answers(client)] == [200]


@pytest.mark.parametrize(
    "rest",
    [
        b"X: " + b"a" * 3000 + b"\r\n\r\n",
        b"X: " + b"a" * 3000,  # never ends
        b"X: " + b"a" * 1_000_000,
        b"a" * 3000,
        b"X: a\r\n" * 500 + b"\r\n",
    ],
)
def test_large_headers(tight: Running, rest: bytes) -> None:
    with closing(connect(tight)) as client:
        client.sendall(GET + rest)
        refusal(client, 431)


def test_a_refused_client_that_still_sends_reads_why(tight: Running) -> None:
    with closing(connect(tight)) as client:
        client.sendall(GET + b"X: " + b"a" * 3000)
        for _ in range(5):
            time.sleep(0.05)
            client.sendall(b"a" * 3000)
        refusal(client, 431)


def test_a_long_path(tight: Running) -> None:
    with closing(connect(tight)) as client:
        client.sendall(b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        refusal(client, 431)


def test_headers_in_many_small_parts(tight: Running) -> None:
    with closing(connect(tight)) as client:
        client.sendall(GET)
        with pytest.raises((BrokenPipeError, ConnectionResetError, TimeoutError)):
            for _ in range(100_000):
                client.sendall(b"X: " + b"a" * 100 + b"\r\n")
            raise TimeoutError


def test_endless_trailers_end_the_connection(tight: Running) -> None:
    with closing(connect(tight)) as client:
        client.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(10_000):
                client.sendall(b"X: " + b"a" * 100 + b"\r\n")
    assert tight.parrot.requests == []


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body(tight: Running, chunked: bool) -> None:
    body = json.dumps({"prompt": "x" * 5000}).encode()
    with closing(connect(tight)) as client:
        if chunked:
            client.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
            client.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        else:
            client.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        refusal(client, 413)


def test_pipelined_requests_do_not_add_up(tight: Running) -> None:
    with closing(connect(tight)) as client:
        client.sendall((GET + b"X: " + b"a" * 200 + b"\r\n\r\n") * 40)
        client.sendall(GET + b"Connection: close\r\n\r\n")
        assert [status for status, _, _ in answers(client)] == [200] * 41


def test_a_body_does_not_count_as_headers(tight: Running) -> None:
    body = json.dumps({"prompt": "one two", "user": "x" * 3500, "max_tokens": 2}).encode()
    with closing(connect(tight)) as client:
        head = POST + b"Content-Length: %d\r\n" % len(body)
        client.sendall((head + b"\r\n" + body) * 2 + head + b"Connection: close\r\n\r\n" + body)
        assert [status for status, _, _ in answers(client)] == [200] * 3


# Time.


def test_slow_headers(tight: Running) -> None:
    with closing(connect(tight)) as client:
        start_s = time.monotonic()
        trickle(client, GET + b"X: " + b"a" * 1000)
        refusal(client, 408)
        assert time.monotonic() - start_s < 3


def test_slow_headers_after_an_answer(tight: Running) -> None:
    with closing(connect(tight)) as client:
        client.sendall(GET + b"\r\n")
        client.recv(65536)
        trickle(client, GET + b"X: " + b"a" * 1000)
        refusal(client, 408)


@pytest.mark.parametrize("after_an_answer", [False, True])
def test_a_client_that_says_nothing_of_use(tight: Running, after_an_answer: bool) -> None:
    """Line breaks between requests are allowed, but do not keep a connection open."""
    with closing(connect(tight)) as client:
        if after_an_answer:
            client.sendall(GET + b"\r\n")
            client.recv(65536)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(100):
                client.sendall(b"\r\n")
                time.sleep(0.05)


def test_a_silent_client_is_let_go(tight: Running) -> None:
    with closing(connect(tight)) as client:
        assert client.recv(1) == b""


def test_a_slow_body(tight: Running) -> None:
    with closing(connect(tight)) as client:
        client.sendall(POST + b"Content-Length: 1000\r\n\r\n")
        trickle(client, b"{" + b" " * 999)
        refusal(client, 408)


def test_the_rest_of_a_refused_body_may_not_trickle_for_ever(tight: Running) -> None:
    with closing(connect(tight)) as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 404")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(100):
                client.sendall(b"x")
                time.sleep(0.05)


def test_a_client_that_stops_reading_is_cut_off(tight: Running) -> None:
    body = json.dumps({"prompt": "a b c", "stream": True, "max_tokens": 2000, "n": 100}).encode()
    with closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", tight.port))
        client.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        tight.parrot.wait_for(
            lambda parrot: len(parrot.streams) == 100 and all(s.cancels for s in parrot.streams),
            30,
        )


def test_a_slow_reader_of_a_large_answer_is_not_cut_off(tight: Running) -> None:
    fields = {"max_tokens": 1900, "n": 9, "ignore_eos": True, "logprobs": True, "top_logprobs": 5}
    body = json.dumps(fields | {"messages": [{"role": "user", "content": "a"}]}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    with closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.connect(("127.0.0.1", tight.port))
        client.settimeout(60)
        client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        got = bytearray()
        while part := client.recv(128 * 1024, socket.MSG_WAITALL):
            got += part
            time.sleep(0.1)
    head, _, answer = bytes(got).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert len(answer) > 5_000_000  # more than the kernel's buffers take at once
    assert len(json.loads(answer)["choices"]) == 9


def test_not_http(tight: Running) -> None:
    with closing(connect(tight)) as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # TLS to a plain port
        refusal(client, 400)


# Number.


def test_too_many_connections(serve: Serve) -> None:
    server = serve(msgspec.structs.replace(TIGHT, header_timeout_s=20.0))
    with ExitStack() as held:
        clients = [held.enter_context(closing(connect(server))) for _ in range(3)]
        for client in clients:
            client.sendall(GET + b"\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
        for _ in range(2):
            with closing(connect(server)) as late:
                late.sendall(GET + b"\r\n")
                assert int(refusal(late, 503)["retry-after"]) > 0
        clients[0].sendall(GET + b"\r\n")  # those that are in are served on
        assert clients[0].recv(65536).startswith(b"HTTP/1.1 200")
    end_s = time.monotonic() + 10
    while True:  # once they have gone there is room again
        with closing(connect(server)) as client:
            client.sendall(GET + b"Connection: close\r\n\r\n")
            if next(answers(client))[0] == 200:
                return
        assert time.monotonic() < end_s, "no room although all have left"


def test_many_slow_clients_do_not_keep_others_out(serve: Serve) -> None:
    """Slowloris: all connections are taken by clients that never finish their headers."""
    server = serve(msgspec.structs.replace(TIGHT, max_connections=50, header_timeout_s=1.0))
    with ExitStack() as held:
        for _ in range(50):
            held.enter_context(closing(connect(server))).sendall(GET + b"X: a")
        with openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=8, timeout=10
        ) as client:
            answer = client.completions.create(model=MODEL, prompt="one two", max_tokens=2)
    assert answer.choices[0].finish_reason == "length"
