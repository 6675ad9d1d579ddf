"""Connections whose peers have not proved themselves yet: bounded in number.

Without a bound, whoever reaches a port could use up memory and file descriptors, and keep honest
peers out. Where all places are taken the next connection waits in the kernel's queue until one is
free; but a connection that has had its time gives way at once. An honest peer needs milliseconds,
so that many of them, as when a scheduler comes back, all get in, one after the other, while
silent ones hold a place no longer than ``GRACE_S`` each once others want it.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any, Final

log = logging.getLogger(__name__)

PLACES: Final = 256
GRACE_S: Final = 0.5
_REPORT_PERIOD_S: Final = 10.0
_ACCEPT_PAUSE_S: Final = 0.1


class Unproven:
    """The tasks of such connections, oldest first, at one or several listeners of a loop."""

    def __init__(self, places: int = PLACES) -> None:
        self._places = places
        self._since_s: dict[asyncio.Task[Any], float] = {}
        self._has_left = asyncio.Event()
        self._dropped = 0
        self._reported_s = float("-inf")

    def __len__(self) -> int:
        return len(self._since_s)

    def add(self, task: asyncio.Task[Any]) -> None:
        """``task``, new, serves one; it is cancelled where its place is needed."""
        self._since_s[task] = asyncio.get_running_loop().time()
        task.add_done_callback(self.proven)

    def proven(self, task: asyncio.Task[Any]) -> None:
        """It holds no place any more."""
        if self._since_s.pop(task, None) is not None:
            self._has_left.set()

    async def place(self) -> None:
        """Wait until there is one."""
        while len(self._since_s) >= self._places:
            oldest, since_s = next(iter(self._since_s.items()))
            left_s = since_s + GRACE_S - asyncio.get_running_loop().time()
            if left_s <= 0:
                self._drop(oldest)
            else:
                await self._until_one_leaves(left_s)

    async def _until_one_leaves(self, timeout_s: float) -> None:
        self._has_left.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._has_left.wait()
        except TimeoutError:
            return

    def _drop(self, task: asyncio.Task[Any]) -> None:
        del self._since_s[task]
        task.cancel()
        self._dropped += 1
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._reported_s + _REPORT_PERIOD_S:
            log.warning(
                "%d connections that did not prove themselves in time gave way to others",
                self._dropped,
            )
            self._dropped, self._reported_s = 0, now_s


async def accepted(listener: socket.socket, unproven: Unproven) -> AsyncIterator[socket.socket]:
    """Each connection that comes in at ``listener``, which does not block, and is closed at the
    end. Its task is to be entered into ``unproven`` before the next is asked for."""
    loop = asyncio.get_running_loop()
    with listener:
        while True:
            await unproven.place()
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                # Out of descriptors, or the caller has hung up; the next may fare better.
                log.warning("could not accept a connection: %s", error)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            yield sock
            await asyncio.sleep(0)  # many callers must not keep the loop from all else
