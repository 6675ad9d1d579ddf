"""One client connection: what it may send before the application sees anything, and how slowly.

The life of a connection (uvicorn's, with bounds put around it):

1. Accepted. Over ``max_connections`` it is answered 503 and closed.
2. The head of a request must be complete within ``header_timeout_s`` and ``max_header_bytes``
   (408, 431); what is not HTTP gets 400. Then the application runs; it bounds the body.
3. A client that takes (almost) nothing of its answer for ``send_timeout_s`` is cut off.
4. A client that goes away, at any time: whoever watches its ``Departure`` is told.
5. After the answer the connection waits for the next head, as uvicorn's keep-alive has it; a
   client that sends anything has to complete a head in time again.

A refused client is given a moment to read why: a close with unread data would reset the
connection, and the answer be lost.
"""

import asyncio
import fcntl
import sys
import termios
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from splitwise.gateway.http.exchange import DEPARTURE, Departure, HttpLimits
from splitwise.gateway.openai.errors import ApiError

_LINGER_S: Final = 1.0
_MAX_LINGERING: Final = 256
"""Refused connections that are given the moment at a time; more are just closed."""
_RETRY_S: Final = 1.0
_AT_ONCE_BYTES: Final = 8192
"""What is parsed in one turn of the loop."""
_LEAST_TAKEN_BYTES: Final = 4096
"""Of an answer within ``send_timeout_s``; trickling counts as not reading."""


class Room:
    """How many connections are open, by whether they were let in."""

    def __init__(self) -> None:
        self.served = 0
        self.refused = 0


class _HeadTooLarge(Exception):
    """Ends the parser's work on the spot."""


class Connection(HttpToolsProtocol):
    """uvicorn's connection within ``limits``; ``room`` is shared by a server's connections."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        limits: HttpLimits,
        room: Room,
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._limits = limits
        self._room = room
        self._over_limit = False
        self._refused = False
        self._departure = Departure()
        self._in_head = False
        self._in_body = False
        self._head_bytes = 0
        self._overhead_bytes = 0
        """Fed to the parser since the last message's end, without the bodies' own bytes."""
        self._unparsed = bytearray()
        self._is_parsing = False
        """Whether the next turn goes on with it."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    # Coming and going.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._over_limit = self._room.served >= self._limits.max_connections
        if not self._over_limit:
            self._room.served += 1
            self._await_head()
            return
        self._room.refused += 1
        if self._room.refused > _MAX_LINGERING:
            self._refused = True
            transport.abort()
            return
        most = self._limits.max_connections
        self._refuse(
            ApiError(
                503,
                f"the server has its {most} connections already: retry later",
                code="too_many_connections",
                kind="server_error",
                retry_after_s=_RETRY_S,
            )
        )

    def connection_lost(self, exc: Exception | None) -> None:
        if self._over_limit:
            self._room.refused -= 1
        else:
            self._room.served -= 1
        self._stop_awaiting_head()
        self._unparsed.clear()
        self.resume_writing()
        super().connection_lost(exc)
        self._departure.happen()

    def _refuse(self, error: ApiError) -> None:
        """Answer instead of the application, and close."""
        self._refused = True
        self._stop_awaiting_head()
        if self._exchange_runs():
            self.transport.close()  # The answer would fall into the one that is being sent.
            return
        body = error.to_json()
        lines = [
            *self.server_state.default_headers,
            *error.headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode("ascii")),
            (b"connection", b"close"),
        ]
        head = b"".join(b"%s: %s\r\n" % line for line in lines)
        self.transport.write(STATUS_LINE[error.status] + head + b"\r\n" + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.close)

    def _exchange_runs(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # What comes in.

    def data_received(self, data: bytes) -> None:
        if len(data) <= _AT_ONCE_BYTES and not self._unparsed:
            self._parse(data)
            return
        self._unparsed += data
        if not self.flow.read_paused:
            self.transport.pause_reading()
        if not self._is_parsing:
            self._parse_on()

    def _parse_on(self) -> None:
        """Parse a piece a turn: what was read at once may be thousands of requests or chunks."""
        piece = bytes(self._unparsed[:_AT_ONCE_BYTES])
        del self._unparsed[:_AT_ONCE_BYTES]
        self._parse(piece)
        self._is_parsing = bool(self._unparsed) and not self._refused
        if self._is_parsing:
            self.loop.call_soon(self._parse_on)
            return
        self._unparsed.clear()
        if not self.flow.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def _parse(self, data: bytes) -> None:
        if not self._refused:
            self._overhead_bytes += len(data)
            super().data_received(data)
            self._check_progress()

    def _check_progress(self) -> None:
        if self._refused:
            return
        limits = self._limits
        # In a body it is the chunks' frames and trailers: as much again as the body may be.
        most = limits.max_body_bytes if self._in_body else limits.max_header_bytes
        if self._overhead_bytes > most:
            self._refuse(self._head_too_large())
        elif self._in_head or not self._exchange_runs():
            self._await_head()

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()
        extensions: dict[str, Any] = {DEPARTURE: self._departure}
        self.scope["extensions"] = extensions

    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self._limits.max_header_bytes:
            self._refuse(self._head_too_large())
            raise _HeadTooLarge
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        self._overhead_bytes = 0
        self._stop_awaiting_head()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._overhead_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._overhead_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when the parser gives up."""
        if not self._refused:
            self._refuse(ApiError(400, "this is not HTTP/1.1: check the client and the scheme"))

    def _head_too_large(self) -> ApiError:
        most = self._limits.max_header_bytes
        return ApiError(
            431,
            f"the request's headers are larger than {most} bytes: send less",
            code="headers_too_large",
        )

    # Slow clients.

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(
                self._limits.header_timeout_s, self._head_is_overdue
            )

    def _stop_awaiting_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_overdue(self) -> None:
        if not self._in_head:
            self.transport.close()  # It said nothing that could be answered.
            return
        limit_s = self._limits.header_timeout_s
        self._refuse(
            ApiError(
                408,
                f"the request's headers did not arrive within {limit_s:g} s: retry",
                code="headers_timeout",
            )
        )

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_sending()

    def _watch_sending(self) -> None:
        self._send_timer = self.loop.call_later(
            self._limits.send_timeout_s,
            self._check_sending,
            self._unsent_bytes(),
        )

    def _check_sending(self, before_bytes: int) -> None:
        """A large answer over a slow line takes its time; a client that takes none has gone."""
        if before_bytes - self._unsent_bytes() < _LEAST_TAKEN_BYTES:
            self.transport.abort()
        else:
            self._watch_sending()

    def _unsent_bytes(self) -> int:
        """What waits here and in the kernel, which takes megabytes at a time."""
        queued = bytearray(4)
        fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, queued)
        return self.transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)

    def resume_writing(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None
        super().resume_writing()
