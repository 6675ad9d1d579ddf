"""To whom an attempt that failed is charged: its request (``isolation``), its machines
(``quarantine``), or both.

1. An attempt fails; ``reports`` or ``scheduler`` tells which way, before the request leaves its
   machines. If the attempt brought the answer further, failures before it count no more.
2. What the request is charged decides whether it is tried alone, or given up, by ``scheduler``.
   Machines that may be to blame are not given it again as long as there are others.
"""

from splitwise.cluster.quarantine import Quarantine
from splitwise.cluster.request import LiveRequest


class Blame:
    """Enters each failure where it belongs."""

    def __init__(self, quarantine: Quarantine) -> None:
        self._quarantine = quarantine

    def engine_failed(
        self, machine: int, live: LiveRequest, in_company: bool, now_s: float
    ) -> None:
        """A machine could not compute it, or forgot it; ``in_company`` of other requests, of which
        each may be the reason."""
        live.attempt_failed()
        if in_company:
            live.failure_count = live.failure_count.failed_in_company()
        else:
            live.failure_count = live.failure_count.failed(was_alone=True)
        live.avoid |= {machine}
        self._quarantine.failed(machine, live.number, False, now_s)

    def transfer_failed(self, live: LiveRequest, now_s: float) -> None:
        """Either end may be to blame. Without the token machine it goes another way, or none: in
        the end the prompt machine computes both phases."""
        live.attempt_failed()
        live.failure_count = live.failure_count.failed()
        live.avoid |= {live.token_machine}
        for machine in (live.prompt_machine, live.token_machine):
            self._quarantine.failed(machine, live.number, True, now_s)

    def machine_lost(self, machine: int, live: LiveRequest, in_company: bool) -> None:
        """A machine that it needs is gone; ``in_company`` of other requests."""
        live.attempt_failed()
        is_there = live.is_at_prompt and machine == live.prompt_machine
        was_alone = live.is_alone and is_there
        count = live.failure_count
        if in_company and not was_alone:
            live.failure_count = count.lost_a_machine()
        else:
            live.failure_count = count.failed(was_alone)

    def machine_silent(self, live: LiveRequest) -> None:
        """A machine that it needs says nothing: a host that is starved or cut off, most likely."""
        live.attempt_failed()
        live.failure_count = live.failure_count.lost_a_machine()

    def preempted(self, machine: int, live: LiveRequest) -> None:
        """No failure: as long as each attempt brings a token it does not go on for ever."""
        if not live.attempt_tokens:
            live.failure_count = live.failure_count.preempted_for_nothing()
            live.avoid |= {machine}
