"""What the HTTP layer itself costs: requests a second, added latency, CPU a streamed token.

The server runs over a generator that computes nothing: one timer hands every live stream a token
at each tick, as the token machines' messages do. The client is this process, on another core. The
row "uvicorn alone" is an application that sends the same bytes without doing anything for them:
what is left of the difference is ours.

    python benchmarks/http_front.py [--clients 32] [--tokens 256] [--seconds 4]
"""

import argparse
import asyncio
import json
import multiprocessing as mp
import os
import resource
import statistics
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from common import environment, write_result
from splitwise.engine.model_files import read_stop_token_ids, resolve_model
from splitwise.engine.sampling import Sample
from splitwise.gateway.http.asgi import Application
from splitwise.gateway.http.exchange import HttpLimits
from splitwise.gateway.http.server import listen, serve_http
from splitwise.gateway.openai.app import App
from splitwise.gateway.openai.validation import ModelFacts
from splitwise.gateway.text.codec import TextCodec
from splitwise.observe.metrics import Metrics
from splitwise.protocol.generation import Chunk, FinishReason, GenerationRequest

TICK_S = 0.002
TOKENS = [504, 2365, 6354, 16438, 27642, 690, 260, 23790, 2767, 28]
"""Ordinary words; which does not matter."""


class TickStream:
    """A token a tick until ``max_tokens``."""

    def __init__(self, request: GenerationRequest) -> None:
        self._left = request.max_tokens
        self._samples: list[Sample] = []
        self._reader: asyncio.Future[None] | None = None
        self.finish: FinishReason | None = None

    def give(self) -> None:
        self._samples.append(Sample(TOKENS[self._left % len(TOKENS)]))
        self._left -= 1
        if self._left == 0:
            self.finish = FinishReason.LENGTH
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def next(self) -> Chunk:
        if not self._samples:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        samples, self._samples = self._samples, []
        return Chunk(samples, self.finish)

    def cancel(self) -> None:
        self.finish = FinishReason.STOP


class TickGenerator:
    """Gives each live stream its first token at once and another at every tick."""

    def __init__(self) -> None:
        self._live: list[TickStream] = []

    def submit(self, request: GenerationRequest) -> TickStream:
        stream = TickStream(request)
        stream.give()
        self._live.append(stream)
        return stream

    async def run(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._live = [stream for stream in self._live if stream.finish is None]
            for stream in self._live:
                stream.give()


def bare_app(generator: TickGenerator) -> Application:
    """The same tokens at the same times as fixed bytes, with no API in between."""
    event = (
        b'data: {"id":"cmpl-0123456789abcdef","object":"text_completion","created":1,"model":"m"'
    )
    event += b',"choices":[{"index":0,"text":" word","logprobs":null,"finish_reason":null}]}\n\n'

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked = json.loads((await receive())["body"])
        stream = generator.submit(GenerationRequest("", [], asked["max_tokens"], None, []))  # type: ignore[arg-type]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        body = {"type": "http.response.body", "body": event, "more_body": True}
        finish = None
        while finish is None:
            finish = (await stream.next()).finish
            await send(body)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    return app


def serve(pipe: Connection, core: int, bare: bool) -> None:
    """The server process: reports its port, then its CPU seconds whenever asked."""
    os.sched_setaffinity(0, {core})
    folder = resolve_model()
    codec = TextCodec.load(folder.path)
    model = ModelFacts(folder.name, 8192, 49152, tuple(read_stop_token_ids(folder)))
    generator, limits = TickGenerator(), HttpLimits()
    metrics = Metrics(folder.name)
    app = App(generator, codec, model, metrics, limits, lambda: None)
    listener = listen("127.0.0.1", 0)

    async def main() -> None:
        stop = asyncio.Event()

        def answer() -> None:
            if pipe.recv() == "stop":
                stop.set()
                return
            used = resource.getrusage(resource.RUSAGE_SELF)
            pipe.send(used.ru_utime + used.ru_stime)

        asyncio.get_running_loop().add_reader(pipe.fileno(), answer)
        ticking = asyncio.create_task(generator.run())
        pipe.send(listener.getsockname()[1])
        await serve_http(bare_app(generator) if bare else app, listener, limits, stop)
        ticking.cancel()

    uvloop.run(main())
    codec.close()


@dataclass
class Plan:
    """What the clients do; ``tokens`` is what each request gets."""

    case: str
    clients: int
    tokens: int
    path: str
    body: dict[str, Any]


@dataclass
class Row:
    case: str
    clients: int
    requests_per_s: float
    tokens_per_s: float
    p50_ms: float
    cpu_us_per_request: float
    cpu_us_per_token: float


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> float:
    """One request on a kept connection, read to its end; the seconds it took."""
    began_s = time.perf_counter()
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"unexpected answer: {head!r}")
    if b"content-length: " in head:
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
    else:
        await reader.readuntil(b"\r\n0\r\n\r\n")
    return time.perf_counter() - began_s


async def load(plan: Plan, port: int, seconds: float) -> list[float]:
    """Keep the plan's connections busy for a while; the latency of every exchange."""
    content = json.dumps(plan.body).encode()
    head = f"POST {plan.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    request = head.encode() + content
    end_s = time.perf_counter() + seconds

    async def client() -> list[float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
        taken_s = []
        while time.perf_counter() < end_s:
            taken_s.append(await exchange(reader, writer, request))
        writer.close()
        return taken_s

    results = await asyncio.gather(*(client() for _ in range(plan.clients)))
    return [taken_s for result in results for taken_s in result]


def measure(plan: Plan, pipe: Connection, port: int, seconds: float) -> Row:
    """Run a plan after a short warm-up, with the server's CPU time before and after."""
    uvloop.run(load(plan, port, 0.5))
    pipe.send("cpu")
    cpu_s, wall_s = -pipe.recv(), -time.perf_counter()
    taken_s = uvloop.run(load(plan, port, seconds))
    wall_s += time.perf_counter()
    pipe.send("cpu")
    cpu_s += pipe.recv()
    requests = len(taken_s)
    return Row(
        plan.case,
        plan.clients,
        requests / wall_s,
        requests * plan.tokens / wall_s,
        statistics.median(taken_s) * 1e3,
        cpu_s / requests * 1e6,
        cpu_s / (requests * plan.tokens) * 1e6,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    message = {"role": "user", "content": "Write a short story about a clever parrot. " * 4}
    chat = {"messages": [message], "max_tokens": 1}
    streamed = {"prompt": "Once upon a time", "stream": True, "max_tokens": options.tokens}
    plans = {
        True: [Plan("uvicorn alone, streamed", options.clients, options.tokens, "/", streamed)],
        False: [
            Plan("chat, 1 token", 1, 1, "/v1/chat/completions", chat),
            Plan("chat, 1 token", options.clients, 1, "/v1/chat/completions", chat),
            Plan("streamed", options.clients, options.tokens, "/v1/completions", streamed),
        ],
    }
    rows: list[Row] = []
    for bare, cases in plans.items():
        pipe, other = mp.Pipe()
        server = mp.get_context("spawn").Process(target=serve, args=(other, cores[0], bare))
        server.start()
        port = pipe.recv()
        try:
            rows += [measure(plan, pipe, port, options.seconds) for plan in cases]
        finally:
            pipe.send("stop")
            server.join(20)
    show(rows)
    record = {"environment": environment(), "arguments": vars(options)}
    write_result("http_front", record | {"rows": [asdict(row) for row in rows]})


def show(rows: list[Row]) -> None:
    table = Table("case", "clients", "requests/s", "tokens/s", "p50 ms", "CPU us/request", "/token")
    for row in rows:
        numbers = (row.p50_ms, row.cpu_us_per_request, row.cpu_us_per_token)
        table.add_row(
            row.case,
            str(row.clients),
            f"{row.requests_per_s:.0f}",
            f"{row.tokens_per_s:.0f}",
            *(f"{number:.2f}" if number < 10 else f"{number:.0f}" for number in numbers),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
