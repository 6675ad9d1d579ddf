"""Long work on the event loop, a bit a turn.

What one request asks for may be long without any part of it being: many prompts, many answers,
many tokens. Between the parts its task rests. Of all tasks that do, one goes on in a turn of the
loop, in the order in which they came, so that however many there are a turn stays short.
"""

import asyncio
import time
from typing import Final

TURN_S: Final = 0.002
"""What a task may do before it rests."""


class Turns:
    """Deals the loop's turns out. One for all of a server's requests."""

    def __init__(self) -> None:
        self._next = asyncio.Lock()

    def pace(self) -> "Pace":
        """For a task that begins its long work now."""
        return Pace(self._next)


class Pace:
    """One task's."""

    def __init__(self, turn: asyncio.Lock) -> None:
        self._turn = turn
        self.begin()

    def begin(self) -> None:
        """To be called where the task has waited: that was no work."""
        self._began_s = time.perf_counter()

    async def rest(self) -> None:
        """Let the others go first, if this task has had its time."""
        if time.perf_counter() - self._began_s < TURN_S:
            return
        async with self._turn:
            await asyncio.sleep(0)
        self.begin()
