"""A lean HTTP client for measuring a server that shares its cores with it.

One ``Connection`` carries one request at a time and keeps the answer's bytes; what they say is
looked at afterwards. ``closed_loop`` keeps a number of connections busy, ``open_loop`` sends at
given times whatever the server does, and counts from the time at which a request was due.
"""

import asyncio
import json
import random
import re
import time
from dataclasses import dataclass
from typing import Any

ANSWER_LIMIT_S = 300.0
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_TEXT = re.compile(rb'"text":"((?:[^"\\]|\\.)*)"')


@dataclass
class Exchange:
    """A request's times, on ``time.perf_counter``, and all bytes of its answer."""

    due_s: float
    first_s: float
    end_s: float
    answer: bytes
    longest_pause_s: float
    """Between two parts of the answer, or before the first."""
    paused_until_s: float = 0.0

    @property
    def took_s(self) -> float:
        return self.end_s - self.due_s

    @property
    def first_took_s(self) -> float:
        return self.first_s - self.due_s

    def text(self) -> str:
        """The text of all events, or of the one body."""
        return "".join(json.loads(b'"' + part + b'"') for part in _TEXT.findall(self.answer))


class Connection(asyncio.Protocol):
    """A kept connection; ``exchange`` may be called again once it has returned."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._answer = bytearray()
        self._first_s = 0.0
        self._last_s = 0.0
        self._longest_pause_s = 0.0
        self._paused_until_s = 0.0
        self._end_bytes = 0
        self._done: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, port: int) -> "Connection":
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, "127.0.0.1", port)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(exc or EOFError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        if not self._answer:
            self._first_s = now_s
        if now_s - self._last_s > self._longest_pause_s:
            self._longest_pause_s, self._paused_until_s = now_s - self._last_s, now_s
        self._last_s = now_s
        self._answer += data
        if self._is_whole() and self._done is not None:
            self._done.set_result(None)

    def _is_whole(self) -> bool:
        if self._end_bytes == 0:
            head = self._answer.find(b"\r\n\r\n")
            if head < 0:
                return False
            length = _LENGTH.search(self._answer, 0, head)
            self._end_bytes = head + 4 + int(length[1]) if length else -1
        if self._end_bytes < 0:
            return self._answer.endswith(b"\r\n0\r\n\r\n")
        return len(self._answer) >= self._end_bytes

    async def exchange(self, request: bytes, due_s: float | None = None) -> Exchange:
        """Send a request and wait for its whole answer.

        Raises:
            RuntimeError: the answer is not a 200.
            TimeoutError, OSError, EOFError: there is none.
        """
        sent_s = time.perf_counter()
        self._last_s, self._longest_pause_s = sent_s, 0.0
        self._answer, self._end_bytes = bytearray(), 0
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        async with asyncio.timeout(ANSWER_LIMIT_S):
            await self._done
        if not self._answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"unexpected answer: {bytes(self._answer[:500])!r}")
        now_s = time.perf_counter()
        return Exchange(
            due_s or sent_s,
            self._first_s,
            now_s,
            bytes(self._answer),
            self._longest_pause_s,
            self._paused_until_s,
        )

    def close(self) -> None:
        self._transport.close()


def post(path: str, body: dict[str, Any]) -> bytes:
    """The bytes of a request."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def closed_loop(
    port: int, requests: list[bytes], clients: int, total: int
) -> list[tuple[int, Exchange]]:
    """``total`` exchanges by ``clients`` connections, each as soon as its last one has ended;
    with the number of the request that each was for."""
    done: list[tuple[int, Exchange]] = []
    left = iter(range(total))

    async def client() -> None:
        connection = await Connection.open(port)
        for number in left:
            which = number % len(requests)
            done.append((which, await connection.exchange(requests[which])))
        connection.close()

    await asyncio.gather(*(client() for _ in range(min(clients, total))))
    return done


async def open_loop(port: int, request: bytes, per_s: float, seconds: float) -> list[Exchange]:
    """Exchanges begun at random times (Poisson), ``per_s`` of them a second on average."""
    draw = random.Random(1)
    idle: list[Connection] = []
    tasks: list[asyncio.Task[Exchange]] = []

    async def one(due_s: float) -> Exchange:
        connection = idle.pop() if idle else await Connection.open(port)
        exchange = await connection.exchange(request, due_s)
        idle.append(connection)
        return exchange

    def begin(due_s: float) -> None:
        tasks.append(loop.create_task(one(due_s)))

    def pace() -> None:
        """On a thread of its own: the loop's timers are only good to a millisecond."""
        due_s = time.perf_counter()
        end_s = due_s + seconds
        while due_s < end_s:
            time.sleep(max(0.0, due_s - time.perf_counter()))
            loop.call_soon_threadsafe(begin, due_s)
            due_s += draw.expovariate(per_s)

    loop = asyncio.get_running_loop()
    await asyncio.to_thread(pace)
    exchanges = await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return exchanges
