"""After an iteration that failed: is the engine to blame, or which of the requests in it?

1. The machine tries its engine with work of its own. If that fails every time, the engine is sick,
   whatever it was given, and its worker ends; none of the requests is known to be at fault.
2. Prompts of the iteration are given back to the cluster scheduler. Whoever failed ``SUSPECT_FROM``
   times runs alone from then on, so that the next failure says who it was.
3. Decodes go on: their caches are as they were. Where the iteration had nothing but decodes, its
   halves are tried by themselves, and theirs, down to the one that fails alone.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar

TRIAL_PAUSES_S: Final = (0.0, 0.1, 0.5)
"""Before each trial of an engine: what fails of memory that others hold may be over in a moment."""
SUSPECT_FROM: Final = 2
MAX_FAILURES_ALONE: Final = 3
"""Failures in iterations of its own after which a request is at fault, on whichever machines: one
that breaks the engines it runs on must not go through them all."""
MAX_FRUITLESS_PREEMPTIONS: Final = 16
"""Preemptions in a row before any token came, past which each counts as a failure: a machine that
preempts whatever it is given must not have a request tried for ever."""
MAX_MACHINES_LOST: Final = 8
"""Machines in a row that went under it and others, past which each counts as a failure. Hosts are
killed, cut off and starved, and the requests on them are seldom the reason; but one that brings
down each token machine it comes to must not go on for ever."""

T = TypeVar("T")


class FailureCount(NamedTuple):
    """The failures of a request in a row that brought it no further; each gives a new count."""

    charged: int = 0
    """Those that it may itself be to blame for."""
    in_company: int = 0
    """Of engines, in iterations with others."""
    alone: int = 0
    """In iterations of its own; charged as well."""
    fruitless_preemptions: int = 0
    machines_lost: int = 0
    """Those that others ran on, too."""

    def failed_in_company(self) -> "FailureCount":
        """Not charged while it is one of several and no suspect: others may be to blame."""
        is_charged = self.in_company >= SUSPECT_FROM
        return self._replace(charged=self.charged + is_charged, in_company=self.in_company + 1)

    def failed(self, was_alone: bool = False) -> "FailureCount":
        """It failed by itself, or with a machine that it had for itself."""
        return self._replace(charged=self.charged + 1, alone=self.alone + was_alone)

    def lost_a_machine(self) -> "FailureCount":
        """A machine that others ran on, too, is gone or says nothing."""
        is_charged = self.machines_lost >= MAX_MACHINES_LOST
        return self._replace(
            charged=self.charged + is_charged, machines_lost=self.machines_lost + 1
        )

    def preempted_for_nothing(self) -> "FailureCount":
        """It was preempted before this attempt brought a token."""
        is_charged = self.fruitless_preemptions >= MAX_FRUITLESS_PREEMPTIONS
        return self._replace(
            charged=self.charged + is_charged,
            fruitless_preemptions=self.fruitless_preemptions + 1,
        )

    @property
    def is_suspect(self) -> bool:
        """Whether the request is to run alone."""
        return self.charged + self.in_company + self.machines_lost >= SUSPECT_FROM

    def is_enough(self, max_failures: int) -> bool:
        """Whether the request is to be given up."""
        return self.charged >= max_failures or self.alone >= MAX_FAILURES_ALONE


NO_FAILURES: Final = FailureCount()


def count_company(suspects: Sequence[bool]) -> int:
    """How many prompts at the head of a queue may share an iteration: those before the first
    suspect; or that one, by itself, if it is the first."""
    for i, is_suspect in enumerate(suspects):
        if is_suspect:
            return max(i, 1)
    return len(suspects)


def halves(batch: Sequence[T]) -> list[Sequence[T]]:
    """The parts of a failed batch of two or more that are tried by themselves."""
    middle = len(batch) // 2
    return [batch[:middle], batch[middle:]]
