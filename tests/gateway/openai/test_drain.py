"""A server that is told to stop lets running requests end, and says so to whoever comes."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
from api_server import MODEL
from parrot import Parrot

from splitwise.gateway.http.exchange import HttpLimits
from splitwise.gateway.http.server import listen, serve_http
from splitwise.gateway.openai.app import App
from splitwise.gateway.openai.gate import Gate
from splitwise.gateway.openai.validation import ModelFacts
from splitwise.gateway.text.codec import TextCodec
from splitwise.observe.metrics import Metrics

PLAIN = "/v1/completions"
PROMPT = "one two three four five six seven eight"


@dataclass
class Draining:
    """A server on the test's own event loop."""

    parrot: Parrot
    stop: asyncio.Event
    hurry: asyncio.Event
    serving: asyncio.Task[None]
    http: httpx.AsyncClient

    async def start_request(self, **fields: object) -> asyncio.Task[httpx.Response]:
        """A request that the parrot holds after one token."""
        self.parrot.hold(1)
        body = {"prompt": PROMPT, "max_tokens": 8} | fields
        asked = asyncio.create_task(self.http.post(PLAIN, json=body))
        while not any(stream.said for stream in self.parrot.streams):
            await asyncio.sleep(0.01)
        return asked


@asynccontextmanager
async def draining_server(
    codec: TextCodec, facts: ModelFacts, drain_s: float
) -> AsyncIterator[Draining]:
    stop, hurry, parrot = asyncio.Event(), asyncio.Event(), Parrot()
    listener, limits = listen("127.0.0.1", 0), HttpLimits(drain_s=drain_s)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    app = App(parrot, codec, facts, Metrics(MODEL), limits, lambda: None, Gate(stop=stop))
    serving = asyncio.create_task(serve_http(app, listener, limits, stop, hurry=hurry))
    try:
        async with httpx.AsyncClient(base_url=url, timeout=20) as http:
            yield Draining(parrot, stop, hurry, serving, http)
    finally:
        stop.set()
        hurry.set()
        await asyncio.wait_for(serving, 20)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_running_request_ends_as_if_nothing_were(
    codec: TextCodec, facts: ModelFacts, stream: bool
) -> None:
    async with draining_server(codec, facts, 20) as server:
        asked = await server.start_request(stream=stream)
        server.stop.set()
        await asyncio.sleep(0.3)
        assert not server.serving.done()
        server.parrot.release()
        answer = await asked
        assert answer.status_code == 200
        if stream:
            assert answer.text.endswith("data: [DONE]\n\n")
        else:
            assert answer.json()["choices"][0]["text"] == PROMPT
        start_s = time.monotonic()
        await asyncio.wait_for(server.serving, 10)
        assert time.monotonic() - start_s < 5  # not the whole of drain_s
        assert server.parrot.cancelled() == []


async def test_new_requests_are_refused_on_old_and_new_connections(
    codec: TextCodec, facts: ModelFacts
) -> None:
    async with draining_server(codec, facts, 20) as server:
        assert (await server.http.get("/health")).status_code == 200
        asked = await server.start_request()
        server.stop.set()
        async with httpx.AsyncClient(base_url=server.http.base_url, timeout=20) as stranger:
            for http in (server.http, stranger):
                health = await http.get("/health")
                assert health.status_code == 503
                assert "draining" in health.json()["error"]["message"]
                assert (await http.get("/metrics")).status_code == 200
                refused = await http.post(PLAIN, json={"prompt": PROMPT})
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) > 0
                assert refused.headers["connection"] == "close"
                assert refused.json()["error"]["code"] == "draining"
        assert len(server.parrot.requests) == 1
        server.parrot.release()
        assert (await asked).status_code == 200


@pytest.mark.parametrize("hurried", [False, True])
async def test_what_does_not_end_in_time_is_cancelled(
    codec: TextCodec, facts: ModelFacts, hurried: bool
) -> None:
    async with draining_server(codec, facts, 60 if hurried else 0.5) as server:
        asked = await server.start_request()
        server.stop.set()
        if hurried:
            server.hurry.set()
        await asyncio.wait_for(server.serving, 10)
        assert (await asked).status_code == 503
        assert server.parrot.streams[0].cancels == 1


async def test_an_idle_server_ends_at_once(codec: TextCodec, facts: ModelFacts) -> None:
    async with draining_server(codec, facts, 60) as server:
        await server.http.get("/health")  # leaves a connection open
        server.stop.set()
        await asyncio.wait_for(server.serving, 5)
