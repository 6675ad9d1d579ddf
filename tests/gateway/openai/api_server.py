"""A server under test and what stands behind it."""

import ssl
from dataclasses import dataclass
from typing import Protocol

from parrot import Parrot

from splitwise.gateway.http.exchange import HttpLimits
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


class Serve(Protocol):
    """Starts a server for one test, which ends with it."""

    def __call__(
        self,
        limits: HttpLimits = LIMITS,
        gate: Gate | None = None,
        parrot: Parrot | None = None,
        tls: ssl.SSLContext | None = None,
        codec: TextCodec | None = None,
        facts: ModelFacts | None = None,
    ) -> Running: ...
