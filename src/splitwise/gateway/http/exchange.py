"""The little that is needed between an ASGI server and the API.

The life of an HTTP exchange:

1. ``server`` accepts the connection and calls the application once the head is there.
2. ``Request`` reads the body within a size and a time limit, and then watches for the client's
   going away while the answer is prepared.
3. ``Reply`` sends one JSON answer or a stream of events. uvicorn's ``send`` waits while the
   client is slow, so that what is buffered for it stays bounded.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from splitwise.gateway.api_keys import Tenant
from splitwise.gateway.http.asgi import Headers, Receive, Scope, Send

MAX_REQUEST_ID_CHARS: Final = 128
DEPARTURE: Final = "splitwise.departure"
"""The extension of the ASGI scope under which a connection's ``Departure`` is found."""
_LINGER_S: Final = 1.0
_PROCESS: Final = secrets.token_hex(6)
_numbers = count()


class HttpLimits(msgspec.Struct, frozen=True):
    """Bounds on what a client may send and how long it may take. A field with a description is an
    option of ``splitwise serve``."""

    max_connections: Annotated[
        int, Meta(ge=1, description="Open HTTP connections beyond which 503 is said.")
    ] = 8192
    """A bound on file descriptors."""
    max_body_bytes: Annotated[
        int, Meta(ge=1, description="Size of a request beyond which 413 is said.")
    ] = 4 * 1024 * 1024
    max_header_bytes: Annotated[
        int, Meta(ge=512, description="Size of its headers beyond which 431 is said.")
    ] = 32 * 1024
    """Of the request line and the headers together."""
    header_timeout_s: Annotated[
        float, Meta(ge=0.1, description="Time for the headers to arrive, else 408.")
    ] = 20.0
    """From the connection's start or a request's first byte."""
    body_timeout_s: Annotated[
        float, Meta(ge=0.1, description="Time for the body to arrive, else 408.")
    ] = 30.0
    send_timeout_s: float = 60.0
    """For a client to take some of what was sent to it."""
    max_request_s: Annotated[
        float, Meta(ge=0.1, description="Time for a request, beyond which it gets 504.")
    ] = 3600.0
    """A client may set a shorter time, not a longer one."""
    drain_s: Annotated[
        float, Meta(ge=0, description="Time for running requests to end after SIGTERM.")
    ] = 30.0
    max_stop_strings: int = 16
    max_stop_string_chars: int = 256
    max_stop_token_ids: int = 256
    max_choices: int = 128
    """Prompts times ``n`` of one request."""
    max_logprobs: int = 20
    max_messages: int = 4096
    least_token_ids: int = 131_072
    """What a request may have of them at least; it may have as many as the model's context."""


class BodyTooLarge(Exception):
    """The body is over the limit; its rest was not read."""


class BodyTimeout(Exception):
    """The body did not arrive in time."""


class UpgradeAsked(Exception):
    """The client asks for another protocol; the HTTP parser then does not read the body."""


class Disconnected(Exception):
    """The client went away."""


class Departure:
    """The going away of a connection's client, and what is to be called then.

    ASGI has it as a message to wait for, which takes a task of its own beside each exchange.
    """

    def __init__(self) -> None:
        self.has_happened = False
        self._callback: Callable[[], object] | None = None

    def watch(self, callback: Callable[[], object] | None) -> None:
        """Have this called, in place of what was to be called before; at once if it is over."""
        self._callback = callback
        if self.has_happened and callback is not None:
            callback()

    def happen(self) -> None:
        self.has_happened = True
        self.watch(self._callback)


class Request:
    """One exchange as its client opened it."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        peer = scope.get("client")
        self.address: str = peer[0] if peer else ""
        """Of the client, or of the proxy before it."""
        extensions = scope.get("extensions") or {}
        self._departure: Departure = extensions.get(DEPARTURE) or Departure()
        """Under other servers than ``server`` it never happens."""
        self._receive = receive
        self._content_bytes = 0
        self._more_body = True
        self._upgrade = False
        given = b""
        self.authorization = b""
        self.tenant: Tenant | None = None
        """Whose its key is, once the gate has looked."""
        self.timeout: bytes | None = None
        """``X-Request-Timeout`` as it was given."""
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                given = value
            elif name == b"authorization":
                self.authorization = value
            elif name == b"x-request-timeout":
                self.timeout = value
            elif name == b"upgrade":
                self._upgrade = True
            elif name == b"content-length":
                self._content_bytes = int(value)  # the HTTP parser has seen that it is a number
        self.unique_id = f"{_PROCESS}{next(_numbers):012x}"
        self.client_id = _usable_id(given)
        self.id = self.client_id or self.unique_id
        self.arrived_s = time.perf_counter()

    async def body(self, limits: HttpLimits) -> bytes:
        """The whole body.

        Raises:
            BodyTooLarge, BodyTimeout, UpgradeAsked, Disconnected: there is none to be had.
        """
        if self._upgrade:
            raise UpgradeAsked
        if self._content_bytes > limits.max_body_bytes:
            raise BodyTooLarge
        parts: list[bytes] = []
        room_bytes = limits.max_body_bytes
        try:
            async with asyncio.timeout(limits.body_timeout_s):
                while self._more_body:
                    part = await self._next_part()
                    room_bytes -= len(part)
                    if room_bytes < 0:
                        raise BodyTooLarge
                    parts.append(part)
        except TimeoutError:
            raise BodyTimeout from None
        return b"".join(parts)

    async def _next_part(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        self._more_body = message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part

    async def discard_rest(self) -> None:
        """Read on for a moment without keeping anything.

        A socket closed with unread data resets the connection, and the client that is still
        sending would see that instead of the answer.
        """
        with contextlib.suppress(TimeoutError, Disconnected):
            async with asyncio.timeout(_LINGER_S):
                while self._more_body:
                    await self._next_part()

    @contextlib.contextmanager
    def while_connected(self) -> Iterator[None]:
        """Cancel the block when the client goes away, and raise ``Disconnected`` then."""
        task = asyncio.current_task()
        assert task is not None
        departure = self._departure
        departure.watch(task.cancel)
        try:
            yield
        except asyncio.CancelledError:
            if departure.has_happened and task.uncancel() == 0:
                raise Disconnected from None
            raise
        finally:
            departure.watch(None)


class Reply:
    """The answer to one exchange: one body, or a stream of events."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._id_header = (b"x-request-id", request_id.encode("ascii"))
        self.started = False

    async def body(
        self,
        status: int,
        body: bytes,
        content_type: bytes = b"application/json",
        headers: Headers | None = None,
    ) -> None:
        await self._start(status, content_type, len(body), headers)
        await self._send({"type": "http.response.body", "body": body})

    async def last_body(self, status: int, body: bytes, request: Request) -> None:
        """Answer although the client is still sending, then close the connection."""
        await self._start(status, b"application/json", len(body), [(b"connection", b"close")])
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        await request.discard_rest()
        await self.end()

    async def events(self, events: bytes) -> None:
        """Send server-sent events, each ending with an empty line."""
        if not self.started:
            await self._start(200, b"text/event-stream; charset=utf-8", None, _NO_CACHE)
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(
        self, status: int, content_type: bytes, body_bytes: int | None, headers: Headers | None
    ) -> None:
        self.started = True
        head: Headers = [(b"content-type", content_type), self._id_header, *(headers or ())]
        if body_bytes is not None:
            head.append((b"content-length", str(body_bytes).encode("ascii")))
        await self._send({"type": "http.response.start", "status": status, "headers": head})


_NO_CACHE: Final[Headers] = [(b"cache-control", b"no-cache")]


def _usable_id(given: bytes) -> str:
    """The client's request id if it is printable ASCII of bounded length, else nothing."""
    if not 0 < len(given) <= MAX_REQUEST_ID_CHARS or not all(0x21 <= c <= 0x7E for c in given):
        return ""
    return given.decode("ascii")
