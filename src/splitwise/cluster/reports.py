"""What machines say of their tasks, and what follows from it.

The life of a report:

1. ``scheduler`` gets it from a machine's connection (``take``). One of a task that ended meanwhile
   says nothing; one of another machine's task, or of tokens that cannot be, breaks the protocol.
2. ``PromptsStarted``: the prompt is in an iteration. ``Outputs``: tokens go to the client, the
   first of an attempt ends its prompt phase, the last its request (``on_end``). ``Transferred``:
   the prompt machine has nothing more to do with it.
3. ``TaskFailed``, ``Preempted``: whose fault it is goes to ``blame``, and the request is taken up
   again elsewhere (``on_lost``).
"""

import logging
from collections.abc import Callable

from splitwise.cluster.attempts import Attempts
from splitwise.cluster.backlog import Backlog
from splitwise.cluster.blame import Blame
from splitwise.cluster.ledger import Ledger
from splitwise.cluster.metrics import ClusterMetrics
from splitwise.cluster.quarantine import Quarantine
from splitwise.cluster.request import LiveRequest, RequestState
from splitwise.cluster.roster import Roster
from splitwise.protocol.messages import (
    Output,
    Outputs,
    Preempted,
    PromptsStarted,
    TaskFailed,
    Transferred,
)

log = logging.getLogger(__name__)

TaskReport = PromptsStarted | Outputs | Transferred | TaskFailed | Preempted


class Reports:
    """Takes in the word of each machine on each task."""

    def __init__(
        self,
        roster: Roster,
        attempts: Attempts,
        ledger: Ledger,
        backlog: Backlog,
        quarantine: Quarantine,
        blame: Blame,
        metrics: ClusterMetrics,
        on_end: Callable[[LiveRequest, bool], None],
        on_lost: Callable[[LiveRequest, str], None],
    ) -> None:
        """``on_end`` gets a request that has its last token, and whether its machines still have
        to be told; ``on_lost`` one whose attempt is over, and why."""
        self._roster = roster
        self._attempts = attempts
        self._ledger = ledger
        self._backlog = backlog
        self._quarantine = quarantine
        self._blame = blame
        self._metrics = metrics
        self._on_end = on_end
        self._on_lost = on_lost

    def take(self, machine: int, report: TaskReport, now_s: float) -> None:
        """Take in what a machine says, heard at ``now_s``.

        Raises:
            ValueError: it broke the protocol. What it said before that is taken in.
        """
        match report:
            case Outputs(items=items):
                self._quarantine.succeeded(machine)
                for output in items:
                    self._on_output(machine, output, now_s)
            case Transferred():
                self._on_transferred(machine, report, now_s)
            case PromptsStarted(tasks=tasks):
                for task in tasks:
                    self._on_prompt_started(machine, task, now_s)
            case TaskFailed():
                self._on_failed(machine, report, now_s)
            case Preempted(task=task):
                self._on_preempted(machine, task)

    def _on_output(self, machine: int, output: Output, now_s: float) -> None:
        live = self._attempts.of_task(machine, output.task)
        if live is None:
            return
        self._check_output(machine, live, output)
        live.moved_s = now_s
        is_first = not live.has_output
        delivered = live.accept(output)
        if not delivered:
            return
        if live.state is RequestState.PROMPT:
            self._backlog.prompt_ended(live.at_prompt.pending_tokens, now_s)
            self._attempts.first_token_out(live)
        self._backlog.delivered(live, delivered, is_first)
        self._ledger.grown(live)
        if live.is_finished:
            # A request that ends on its prompt machine is still expected on its token machine.
            self._on_end(live, machine != live.token_machine)

    def _check_output(self, machine: int, live: LiveRequest, output: Output) -> None:
        if not len(live.history) <= output.position < live.max_history_tokens:
            raise ValueError(
                f"task {output.task}: output at position {output.position}, where "
                f"{len(live.history)} to {live.max_history_tokens - 1} are due"
            )
        vocabulary = self._roster.link(machine).register.model.vocab_size
        tokens = [output.sample.token]
        tokens += [token for token, _ in output.sample.top or ()]
        for token in tokens:
            if not 0 <= token < vocabulary:
                raise ValueError(f"task {output.task}: token {token} of {vocabulary}")

    def _on_prompt_started(self, machine: int, task: int, now_s: float) -> None:
        live = self._attempts.of_task(machine, task)
        if live is None:
            return
        live.moved_s = now_s
        self._ledger.prompt_started(live)
        if not live.has_output:
            self._metrics.queued(now_s - live.submitted_s)

    def _on_transferred(self, machine: int, message: Transferred, now_s: float) -> None:
        live = self._attempts.of_task(machine, message.task)
        stats = message.stats
        self._metrics.transfer(stats.bytes, stats.early_bytes, stats.visible_s, stats.transport)
        if live is None:
            return
        for end in (live.prompt_machine, live.token_machine):
            self._quarantine.succeeded(end, in_transfer=True)
        live.moved_s = now_s
        self._ledger.prompt_machine_left(live)

    def _on_failed(self, machine: int, failure: TaskFailed, now_s: float) -> None:
        live = self._attempts.of_task(machine, failure.task)
        if live is None:
            return
        log.warning("request %s: %s; taken up again", live.request.request_id, failure.reason)
        if failure.in_transfer:
            self._metrics.transfer_failed()
            self._blame.transfer_failed(live, now_s)
        else:
            self._blame.engine_failed(machine, live, failure.in_company, now_s)
        self._on_lost(live, failure.reason)

    def _on_preempted(self, machine: int, task: int) -> None:
        live = self._attempts.of_task(machine, task)
        self._metrics.preempted()
        if live is None:
            return
        self._blame.preempted(machine, live)
        self._on_lost(live, "preempted")
