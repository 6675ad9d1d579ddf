"""A server under test and what stands behind it."""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import uvloop
from parrot import Parrot

from splitwise.gateway.http.exchange import HttpLimits
from splitwise.gateway.http.server import listen, serve_http
from splitwise.gateway.openai.app import App
from splitwise.gateway.openai.gate import Gate
from splitwise.gateway.openai.validation import ModelFacts
from splitwise.gateway.text.codec import TextCodec
from splitwise.observe.metrics import Metrics

MODEL = "smol/parrot"
LIMITS = HttpLimits(max_body_bytes=256 * 1024, body_timeout_s=1.0, drain_s=2.0)


class Health:
    """The reason why the cluster cannot serve, which tests set."""

    reason: str | None = None

    def __call__(self) -> str | None:
        return self.reason


@dataclass
class Running:
    """A server in a thread of its own, and what stands behind it."""

    port: int
    parrot: Parrot
    metrics: Metrics
    health: Health
    facts: ModelFacts
    codec: TextCodec

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


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


@dataclass(frozen=True)
class Serve:
    """Starts servers for one test, which end with it."""

    codec: TextCodec
    facts: ModelFacts
    servers: ExitStack

    def __call__(
        self,
        limits: HttpLimits = LIMITS,
        gate: Gate | None = None,
        parrot: Parrot | None = None,
        tls: ssl.SSLContext | None = None,
        codec: TextCodec | None = None,
        facts: ModelFacts | None = None,
    ) -> Running:
        return self.servers.enter_context(
            serving(
                codec or self.codec,
                facts or self.facts,
                limits,
                gate or Gate(),
                parrot or Parrot(),
                tls,
            )
        )
