"""What the cluster still owes a first token, and those of it that wait for a machine.

1. A request is entered as it comes, unless too many are due (``is_full``, ``overloaded``).
2. Where there is no room it stands in ``line`` (producer and consumer: ``scheduler``); so does one
   that lost its machines, at any time of its life.
3. Its first token, or its end before that, takes it out; how fast prompts go says when those that
   are refused may come again.
4. One that stands in line too long, or for too long while nobody could serve it, is ``overdue``.
"""

import math
import time
from collections.abc import Callable

from splitwise.cluster.limits import ClusterLimits
from splitwise.cluster.rate import RateMeter
from splitwise.cluster.request import LiveRequest
from splitwise.cluster.roster import Roster
from splitwise.protocol.generation import Overloaded, Unavailable
from splitwise.scheduling import admission
from splitwise.scheduling.waiting import WaitingLine


class Backlog:
    """Counts what is due, and keeps the line."""

    def __init__(
        self,
        roster: Roster,
        limits: ClusterLimits,
        needed_tokens: Callable[[LiveRequest], int],
        order: Callable[[LiveRequest], float] | None = None,
    ) -> None:
        """``needed_tokens`` is the cache that a request needs to begin with; ``order`` says who
        goes first, None that clients share."""
        self._roster = roster
        self._limits = limits
        self._needed_tokens = needed_tokens
        self.line: WaitingLine[LiveRequest] = WaitingLine(
            needed_tokens, lambda: roster.largest_tokens, order
        )
        self.first_tokens_due = 0
        """Requests that never had a token."""
        self._prompt_rate = RateMeter(time.monotonic())
        self._could_serve_s = -math.inf

    @property
    def is_full(self) -> bool:
        """Whether another request can only come in for one that goes."""
        return not admission.admits(self.first_tokens_due, self._limits.max_waiting_requests)

    def overloaded(self) -> Overloaded:
        """What one that has to go is told."""
        pending = sum(self._roster.cluster.pending_tokens) + self.line.prompt_tokens
        return Overloaded(
            f"{self.first_tokens_due} requests already wait for their first token",
            admission.retry_after_s(pending, self._prompt_rate.per_s(time.monotonic())),
        )

    def prompt_ended(self, prompt_tokens: int, now_s: float) -> None:
        """A prompt of so many tokens was computed."""
        self._prompt_rate.add(prompt_tokens, now_s)

    def delivered(self, live: LiveRequest, tokens: int, is_first: bool) -> None:
        """A request got this much output; ``is_first``: it had none before."""
        self.first_tokens_due -= is_first
        self.line.serve(live, tokens)

    def overdue(self, unavailable: str | None, now_s: float) -> list[tuple[LiveRequest, Exception]]:
        """Those that have waited too long, and why; ``unavailable`` says why nobody serves now."""
        if unavailable is None:
            self._could_serve_s = now_s
        found: list[tuple[LiveRequest, Exception]] = []
        for live in self.line:
            waited = self._waited_too_long(live, unavailable, now_s)
            if waited is not None:
                found.append((live, Unavailable(waited)))
        return found

    def _waited_too_long(
        self, live: LiveRequest, unavailable: str | None, now_s: float
    ) -> str | None:
        limits = self._limits
        if now_s - live.waiting_since_s > limits.max_wait_s:
            return f"no machine had room for {limits.max_wait_s:g} s"
        since_s, why = self.line.parked_since_s(live), unavailable
        if since_s is not None:
            needed = self._needed_tokens(live)
            why = f"no machine that is there holds {needed} tokens of cache"
        elif unavailable is not None:
            since_s = max(live.waiting_since_s, self._could_serve_s)
        if since_s is not None and now_s - since_s > limits.max_wait_for_machine_s:
            return f"{why}, for {limits.max_wait_for_machine_s:g} s"
        return None
