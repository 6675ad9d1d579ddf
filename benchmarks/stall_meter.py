"""How long an event loop takes no turn: its stalls.

A timer of a millisecond runs on the loop; each time it is late by as much as something held the
loop up. The wall clock also counts what other processes and threads took of the core; the loop's
own CPU time between two turns is what it did itself.
"""

import asyncio
import time
from typing import NamedTuple

PERIOD_S = 0.001


class Stall(NamedTuple):
    wall_s: float
    cpu_s: float


class StallMeter:
    """Remembers the longest stalls of the running loop. For use from that loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._longest = Stall(0.0, 0.0)
        self._wall_s, self._cpu_s = time.perf_counter(), time.thread_time()
        self._loop.call_later(PERIOD_S, self._turn)

    def take(self) -> Stall:
        """The longest since the last call; wall and CPU may be of different turns."""
        self._note()
        longest, self._longest = self._longest, Stall(0.0, 0.0)
        return longest

    def _turn(self) -> None:
        self._note()
        self._loop.call_later(PERIOD_S, self._turn)

    def _note(self) -> None:
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        self._longest = Stall(
            max(self._longest.wall_s, wall_s - self._wall_s - PERIOD_S),
            max(self._longest.cpu_s, cpu_s - self._cpu_s),
        )
        self._wall_s, self._cpu_s = wall_s, cpu_s
