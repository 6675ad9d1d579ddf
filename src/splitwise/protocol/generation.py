"""What the HTTP layer asks of the cluster, and what it gets back."""

from enum import StrEnum
from typing import Protocol

import msgspec

from splitwise.engine.sampling import Sample, SamplingParams


class FinishReason(StrEnum):
    """Why a request's tokens end (the values are the wire's)."""

    STOP = "stop"
    LENGTH = "length"


class GenerationRequest(msgspec.Struct):
    """One validated completion: tokens in, at most ``max_tokens`` tokens out.

    ``stop_token_ids`` end the output (the model's own end-of-text tokens, and those the client
    added); they are empty when the client asked to ignore them. ``client`` is whose share it is
    served from; of those that wait a lower ``priority`` goes first.
    """

    request_id: str
    prompt: list[int]
    max_tokens: int
    sampling: SamplingParams
    stop_token_ids: list[int]
    client: str = ""
    priority: int = 0


class Chunk(msgspec.Struct):
    """Tokens that arrived together; ``finish`` is set on the last chunk, which may be empty.

    A stop token that ended the output is the last entry of ``samples``.
    """

    samples: list[Sample]
    finish: FinishReason | None = None


class Overloaded(Exception):
    """Admission refused: HTTP 429 with Retry-After. Clients read the reason."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Unavailable(Exception):
    """No machine can serve it now: HTTP 503. Clients read its text, so it names no machine."""


class GenerationFailed(Exception):
    """The cluster gave the request up after it had started: HTTP 500 or an SSE error event.

    Its text says what failed where, for the log; clients are not told.
    """


class TokenStream(Protocol):
    """The output of one request."""

    async def next(self) -> Chunk:
        """Wait for more tokens.

        Raises:
            GenerationFailed, Unavailable: no more will come.
        """

    def cancel(self) -> None:
        """Stop the request and free it everywhere. Harmless when it has ended, or twice."""


class Generator(Protocol):
    """The cluster, as the HTTP layer sees it."""

    def submit(self, request: GenerationRequest) -> TokenStream:
        """Start a request.

        Raises:
            Overloaded, Unavailable: not admitted; nothing was started.
        """
