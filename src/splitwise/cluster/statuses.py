"""What machines say of themselves, every second or so.

1. ``take``: the steps tell that a machine does something (``progress``); its figures are reported;
   blocks that a transfer keeps there, for tasks that ended, are held back (``ledger``).
2. ``lost``: none of it is true any more.
"""

from splitwise.cluster.attempts import Attempts
from splitwise.cluster.ledger import Ledger
from splitwise.cluster.metrics import ClusterMetrics
from splitwise.cluster.progress import Progress
from splitwise.cluster.roster import Roster
from splitwise.protocol.messages import MachineStatus


class Statuses:
    """The last word of each machine."""

    def __init__(
        self,
        roster: Roster,
        attempts: Attempts,
        ledger: Ledger,
        progress: Progress,
        metrics: ClusterMetrics,
    ) -> None:
        self._roster = roster
        self._attempts = attempts
        self._ledger = ledger
        self._progress = progress
        self._metrics = metrics
        self._reporting: set[int] = set()

    def take(self, machine: int, status: MachineStatus, now_s: float) -> None:
        """
        Raises:
            ValueError: its numbers cannot be.
        """
        leaving = status.leaving_blocks
        if max(status.used_blocks, sum(leaving.values())) > status.total_blocks:
            raise ValueError(f"{status} has more blocks in use than there are")
        self._progress.stepped(machine, status.steps, now_s)
        self._reporting.add(machine)
        name = self._roster.names[machine]
        self._metrics.machine(
            name,
            status.used_blocks / status.total_blocks,
            status.running_requests,
            status.waiting_requests,
        )
        self._metrics.machine_totals(
            name, status.prefix_queries_tokens, status.prefix_hits_tokens, status.preemptions
        )
        owns = self._attempts.owns_cache
        unowned = sum(blocks for task, blocks in leaving.items() if not owns(machine, task))
        block_tokens = self._roster.link(machine).register.layout.block_tokens
        self._ledger.hold_back(machine, unowned * block_tokens)

    def lost(self, machine: int) -> None:
        """A machine is connected no more."""
        self._ledger.hold_back(machine, 0)
        if machine in self._reporting:
            self._reporting.remove(machine)
            self._metrics.machine_gone(self._roster.names[machine])
