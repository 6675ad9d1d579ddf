"""Machines that report, and do nothing of what they have to do; and requests that are forgotten.

1. ``scheduler`` tells of each word of a machine about its tasks (``moved``), ``statuses`` of the
   steps that those count (``stepped``): an iteration may take minutes, but its layers do not.
2. ``overdue``, asked every second, finds the requests that have not moved for the limit, and whose
   next word a machine owes (``LiveRequest.owing``). Where that machine has not moved either, it has
   come to a halt; else it has forgotten the request, unless it is known to be at its prompt.
"""

from collections.abc import Iterable

from splitwise.cluster.request import LiveRequest
from splitwise.scheduling.ranking import NOBODY


class Progress:
    """When each machine did something last."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._moved_s: dict[int, float] = {}
        self._steps: dict[int, int] = {}

    def moved(self, machine: int, now_s: float) -> None:
        """A machine has joined, or said something of its tasks."""
        self._moved_s[machine] = now_s

    def stepped(self, machine: int, steps: int, now_s: float) -> None:
        """A status of a machine counts so many steps."""
        if self._steps.get(machine) != steps:
            self._steps[machine] = steps
            self._moved_s[machine] = now_s

    def overdue(
        self, requests: Iterable[LiveRequest], now_s: float
    ) -> tuple[set[int], list[LiveRequest]]:
        """The machines that have come to a halt, and the requests that others have forgotten."""
        since_s = now_s - self._limit_s
        halted, forgotten = set[int](), list[LiveRequest]()
        for live in requests:
            if live.moved_s > since_s or (machine := live.owing) == NOBODY:
                continue
            if self._moved_s[machine] <= since_s:
                halted.add(machine)
            elif not live.is_at_prompt:
                forgotten.append(live)
        return halted, forgotten
