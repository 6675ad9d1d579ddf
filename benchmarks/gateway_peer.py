"""vllm-router over mock workers: the same load, through the front that vLLM users have.

It splits by calling a prompt and a token server over HTTP, one after the other. The mock workers
answer at once with as many tokens as they are asked for, so that what is measured is the router.
"""

import asyncio
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import uvloop

from common import percentile
from front_client import closed_loop, post
from gateway_mock import BODY as OUR_BODY
from gateway_mock import PATH, TICK_S, front_figures

START_LIMIT_S = 60.0
BODY = OUR_BODY | {"model": "null"}


class MockWorker(asyncio.Protocol):
    """Enough HTTP to be a vLLM server for the router."""

    def __init__(self) -> None:
        self._given = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._given += data
        while True:
            head, separator, rest = self._given.partition(b"\r\n\r\n")
            if not separator:
                return
            length = 0
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            if len(rest) < length:
                return
            self._given = rest[length:]
            self._answer(json.loads(rest[:length]) if length else {})

    def _answer(self, asked: dict[str, Any]) -> None:
        if asked.get("stream"):
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                b"transfer-encoding: chunked\r\n\r\n"
            )
            asyncio.get_running_loop().create_task(self._stream(asked.get("max_tokens", 1)))
            return
        choice = {"index": 0, "text": " word", "finish_reason": "length"}
        answer = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "null"}
        answer |= {"choices": [choice], "kv_transfer_params": {"remote_engine_id": "1"}}
        body = json.dumps(answer).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        self._transport.write(head.encode() + b"\r\n\r\n" + body)

    async def _stream(self, tokens: int) -> None:
        event = b'data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"null",'
        event += b'"choices":[{"index":0,"text":" word","finish_reason":null}]}\n\n'
        for _ in range(tokens):
            await asyncio.sleep(TICK_S)
            self._transport.write(b"%x\r\n%s\r\n" % (len(event), event))
        end = b"data: [DONE]\n\n"
        self._transport.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(end), end))


def _serve_mock(port: int) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(MockWorker, "127.0.0.1", port)
        await server.serve_forever()

    uvloop.run(serve())


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def _mock_worker() -> Iterator[int]:
    port = _free_port()
    process = get_context("spawn").Process(target=_serve_mock, args=(port,), daemon=True)
    process.start()
    try:
        yield port
    finally:
        process.terminate()
        process.join(10)


@contextmanager
def _router(command: Path, prompt: int, token: int) -> Iterator[tuple[int, int]]:
    """The router's port and process id, once it answers."""
    port = _free_port()
    arguments = [
        *("--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"),
        *("--vllm-pd-disaggregation", "--prefill", f"http://127.0.0.1:{prompt}"),
        *("--decode", f"http://127.0.0.1:{token}", "--log-level", "error"),
        *("--prometheus-port", str(_free_port()), "--prometheus-host", "127.0.0.1"),
        *("--max-concurrent-requests", "4096"),
    ]
    process = subprocess.Popen([command, *arguments], stdout=subprocess.DEVNULL)
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}", process)
        yield port, process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline_s = time.monotonic() + START_LIMIT_S
    request = urllib.request.Request(
        url + PATH, json.dumps(BODY).encode(), {"Content-Type": "application/json"}
    )
    while True:
        try:
            urllib.request.urlopen(request, timeout=10).close()
            return
        except (urllib.error.URLError, OSError) as error:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"vllm-router does not answer: {error}") from error
        time.sleep(0.2)


def measure(command: Path, requests: int, clients: int, seconds: float) -> dict[str, Any]:
    """The same figures as of our gateway over mock machines (``gateway_mock``)."""
    with ExitStack() as running:
        prompt, token = (running.enter_context(_mock_worker()) for _ in range(2))
        port, pid = running.enter_context(_router(command, prompt, token))
        request = [post(PATH, BODY)]
        direct = [e.took_s for _, e in uvloop.run(closed_loop(token, request, 1, 500))]
        figures = front_figures(port, pid, BODY, requests, clients, seconds)
    return {"mock_worker_alone_p50_ms": percentile(direct, 50) * 1e3} | figures
