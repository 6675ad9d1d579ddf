"""A real server on loopback over a parrot, and clients for it."""

from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import openai
import pytest
from api_server import LIMITS, MODEL, Running, Serve, serving
from parrot import Parrot

from splitwise.engine.model_files import ModelFolder, read_stop_token_ids
from splitwise.gateway.openai.gate import Gate
from splitwise.gateway.openai.validation import ModelFacts
from splitwise.gateway.text.codec import TextCodec


@pytest.fixture(scope="session")
def codec(model_folder: ModelFolder) -> Iterator[TextCodec]:
    codec = TextCodec.load(model_folder.path)
    yield codec
    codec.close()


@pytest.fixture(scope="session")
def facts(model_folder: ModelFolder) -> ModelFacts:
    return ModelFacts(MODEL, 2048, 49152, tuple(read_stop_token_ids(model_folder)))


@pytest.fixture(scope="session")
def running_server(codec: TextCodec, facts: ModelFacts) -> Iterator[Running]:
    with serving(codec, facts, LIMITS, Gate(), Parrot()) as running:
        yield running


@pytest.fixture
def serve(codec: TextCodec, facts: ModelFacts) -> Iterator[Serve]:
    with ExitStack() as servers:
        yield Serve(codec, facts, servers)


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
