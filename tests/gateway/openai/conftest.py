"""A real server on loopback over a parrot, and clients for it."""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import openai
import pytest
import uvloop
from api_server import LIMITS, MODEL, Health, Running, Serve
from parrot import Parrot

from splitwise.engine.model_files import ModelFolder, read_stop_token_ids
from splitwise.gateway.http.exchange import HttpLimits
from splitwise.gateway.http.server import listen, serve_http
from splitwise.gateway.openai.app import App
from splitwise.gateway.openai.gate import Gate
from splitwise.gateway.openai.validation import ModelFacts
from splitwise.gateway.text.codec import TextCodec
from splitwise.observe.metrics import Metrics


@pytest.fixture(scope="session")
def codec(model_folder: ModelFolder) -> Iterator[TextCodec]:
    codec = TextCodec.load(model_folder.path)
    yield codec
    codec.close()


@pytest.fixture(scope="session")
def facts(model_folder: ModelFolder) -> ModelFacts:
    return ModelFacts(MODEL, 2048, 49152, tuple(read_stop_token_ids(model_folder)))


@contextmanager
def serving(
    codec: TextCodec,
    facts: ModelFacts,
    limits: HttpLimits,
    gate: Gate,
    parrot: Parrot,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Running]:
    metrics, health = Metrics(MODEL), Health()
    listener = listen("127.0.0.1", 0)
    running = Running(listener.getsockname()[1], parrot, metrics, health, facts, codec)
    loop = uvloop.new_event_loop()
    stop = asyncio.Event()
    app = App(parrot, codec, facts, metrics, limits, health, gate)
    thread = threading.Thread(
        target=loop.run_until_complete, args=(serve_http(app, listener, limits, stop, tls),)
    )
    thread.start()
    try:
        yield running
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"
        assert asyncio.all_tasks(loop) == set()
        loop.close()


@pytest.fixture(scope="session")
def running_server(codec: TextCodec, facts: ModelFacts) -> Iterator[Running]:
    with serving(codec, facts, LIMITS, Gate(), Parrot()) as running:
        yield running


@pytest.fixture
def serve(codec: TextCodec, facts: ModelFacts) -> Iterator[Serve]:
    usual_codec, usual_facts = codec, facts
    with ExitStack() as servers:

        def start(
            limits: HttpLimits = LIMITS,
            gate: Gate | None = None,
            parrot: Parrot | None = None,
            tls: ssl.SSLContext | None = None,
            codec: TextCodec | None = None,
            facts: ModelFacts | None = None,
        ) -> Running:
            return servers.enter_context(
                serving(
                    codec or usual_codec,
                    facts or usual_facts,
                    limits,
                    gate or Gate(),
                    parrot or Parrot(),
                    tls,
                )
            )

        yield start


@pytest.fixture
def server(running_server: Running) -> Iterator[Running]:
    """The server with a rested parrot; afterwards no stream may be left without an end."""
    running_server.parrot.reset()
    running_server.health.reason = None
    yield running_server
    running_server.parrot.release()
    running_server.parrot.wait_for(
        lambda parrot: all(stream.ended or stream.cancels for stream in parrot.streams)
    )


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client
