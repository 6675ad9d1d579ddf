"""Keeps machines out for a while on which requests fail (the rule: ``scheduling.quarantine``).

It is a defence behind the workers' own: one that finds its engine sick ends.

1. ``blame`` tells of every failure (``failed``), ``reports`` of every success (``succeeded``). A
   machine that fails too often is closed for placement (``Pools.keep_out``); what it runs goes on.
2. ``release_due``, called every second, lets it in again, on probation.
3. One that is lost before it did anything well begins its next life in quarantine.
4. When nobody else is left to serve, all are let in (``release_if_needed``).
"""

import logging

from splitwise.cluster.pools import Pools
from splitwise.cluster.roster import Roster
from splitwise.scheduling.cluster_state import takes_requests
from splitwise.scheduling.placement import can_serve
from splitwise.scheduling.quarantine import MachineRecord

log = logging.getLogger(__name__)


class Quarantine:
    """How the machines of a cluster fare, and which are kept out for it."""

    def __init__(self, roster: Roster, pools: Pools) -> None:
        self._roster = roster
        self._pools = pools
        self._records: dict[int, MachineRecord] = {}
        """Of machines of which a failure was told."""
        self._untried: set[int] = set()
        """Those on which nothing went well yet since they joined."""
        self._kept_out: set[int] = set()

    def failed(self, machine: int, request: int, in_transfer: bool, now_s: float) -> None:
        """A request failed on a machine."""
        record = self._records.setdefault(machine, MachineRecord())
        if record.failed(request, in_transfer):
            self._keep_out(machine, record, now_s)

    def succeeded(self, machine: int, in_transfer: bool = False) -> None:
        """An iteration of a machine went well, or a transfer to or from it."""
        if machine in self._untried:
            self._untried.remove(machine)
        if machine in self._records:
            self._records[machine].succeeded(in_transfer)

    def joined(self, machine: int, now_s: float) -> None:
        """A machine is connected, anew: what it failed before is forgotten, but for how often."""
        record = self._records.get(machine)
        if record is not None:
            record.let_in()
            if machine in self._untried:
                self._keep_out(machine, record, now_s)
        self._untried.add(machine)

    def lost(self, machine: int, was_busy: bool) -> None:
        """A machine is connected no more; ``was_busy`` says that requests ran on it."""
        self._kept_out.discard(machine)
        if not was_busy:
            self._untried.discard(machine)
        elif machine in self._untried:
            self._records.setdefault(machine, MachineRecord())
        self.release_if_needed()

    def release_due(self, now_s: float) -> None:
        """Let in those whose time is over."""
        for machine in list(self._kept_out):
            if self._records[machine].until_s <= now_s:
                self._let_in(machine)

    def release_if_needed(self) -> None:
        """Let all in if nobody else takes requests."""
        if self._kept_out and not can_serve(self._roster.cluster):
            for machine in list(self._kept_out):
                self._let_in(machine)

    def _keep_out(self, machine: int, record: MachineRecord, now_s: float) -> None:
        cluster = self._roster.cluster
        others = (i for i in range(len(cluster.up)) if i != machine)
        if machine in self._kept_out or not any(takes_requests(cluster, i) for i in others):
            return
        left_s = record.keep_out(now_s) - now_s
        name = self._roster.names[machine]
        log.warning("machine %s fails what it is given: nothing new for %g s", name, left_s)
        self._kept_out.add(machine)
        self._pools.keep_out(machine, True)

    def _let_in(self, machine: int) -> None:
        self._kept_out.remove(machine)
        self._records[machine].let_in()
        log.info("machine %s is tried again", self._roster.names[machine])
        self._pools.keep_out(machine, False)
