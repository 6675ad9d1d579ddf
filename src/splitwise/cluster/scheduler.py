"""The cluster-level scheduler, live: which machines run a request, and what becomes of it.

The life of a request here (states: ``RequestState``):

1. ``submit`` admits it. Where others wait, or there is no room, it goes into ``_queue`` (producer:
   the gateway, consumer: ``_dispatch``): WAITING. Where too many wait, it is refused, or takes the
   place of one whose client has more of them. One that no machine could hold waits apart, and for
   a shorter time, for one that could; if none is known, it is refused.
2. ``_dispatch`` places it on a prompt and a token machine in one call, in the order of
   ``waiting``, and tells both: PROMPT. It runs whenever something has made room. A machine
   pulled into the mixed pool for it is not told: a worker runs what it is asked to, whatever its
   pool.
3. Its first token comes from the prompt machine: TOKEN. The others follow from the token machine;
   ``LiveRequest`` puts them in order and wakes the client's reader.
4. The last token, a cancel, or too many failures end it: ENDED. ``_leave_machines`` takes
   back what it was charged (``ledger``), and tells every machine that may still hold something of
   it.
5. A machine that is lost, says nothing, fails the task or preempts it sends the request back into
   ``_queue``, before all of its priority that never began, with its tokens so far as part of the
   prompt: the next attempt. It goes to other machines than those that failed it, as long as there
   are any, and runs its prompt alone once it may be what they failed of (``isolation``).

Everything runs on one asyncio loop, so nothing here needs a lock.
"""

import logging
import math
import time
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Protocol

from splitwise.cluster.decisions import decider
from splitwise.cluster.ledger import Ledger
from splitwise.cluster.limits import ClusterLimits
from splitwise.cluster.pools import PoolMetrics, Pools
from splitwise.cluster.progress import Progress
from splitwise.cluster.quarantine import Quarantine
from splitwise.cluster.rate import RateMeter
from splitwise.cluster.request import LiveRequest, RequestState
from splitwise.cluster.roster import MachineLink, Roster
from splitwise.protocol.generation import (
    GenerationFailed,
    GenerationRequest,
    Overloaded,
    Unavailable,
)
from splitwise.protocol.messages import (
    Cancel,
    Expect,
    Leave,
    MachineStatus,
    Output,
    Outputs,
    Preempted,
    PromptsStarted,
    RunPrompt,
    TaskFailed,
    TaskSpec,
    ToScheduler,
    Transferred,
    Welcome,
)
from splitwise.scheduling import admission
from splitwise.scheduling.cluster_state import left_out
from splitwise.scheduling.decision import PlacementRequest, PlacementRules
from splitwise.scheduling.enacting import pull
from splitwise.scheduling.placement import can_serve, could_hold
from splitwise.scheduling.policies.policy import DEFAULT, Policy
from splitwise.scheduling.ranking import NOBODY
from splitwise.scheduling.reach import least_pending_first
from splitwise.scheduling.waiting import Tried, WaitingLine

log = logging.getLogger(__name__)


class ClusterMetrics(PoolMetrics, Protocol):
    """What the cluster scheduler reports."""

    def machine(self, name: str, usage: float, running: int, waiting: int) -> None: ...
    def transfer(self, bytes_: int, early_bytes: int, visible_s: float, transport: str) -> None: ...
    def machine_gone(self, name: str) -> None: ...
    def queued(self, queue_s: float) -> None: ...
    def transfer_failed(self) -> None: ...
    def preempted(self) -> None: ...
    def waiting(self, priorities: Sequence[int]) -> None: ...
    def refused(self, displaced: bool) -> None: ...


class ClusterScheduler:
    """All machines and all requests; fulfils ``generation.Generator``."""

    def __init__(
        self,
        limits: ClusterLimits,
        metrics: ClusterMetrics,
        model_name: str | None = None,
        policy: Policy = DEFAULT,
    ) -> None:
        self._limits = limits
        self._decide = decider(policy)
        self._rules = PlacementRules(
            limits.prompt_queue_threshold_tokens, limits.change_roles, may_wait=True
        )
        self._metrics = metrics
        self.roster = Roster(model_name)
        self.pools = Pools(self.roster, metrics, on_change=self._on_pools_changed)
        self._quarantine = Quarantine(self.roster, self.pools)
        self._ledger = Ledger(self.roster, on_idle=self.pools.look)
        self._progress = Progress(limits.max_stall_s)
        self._heard_s = time.monotonic()
        """When the message came that is being taken in."""
        self._reporting: set[int] = set()
        self._queue: WaitingLine[LiveRequest] = WaitingLine(
            self._needed_tokens, lambda: self.roster.largest_tokens
        )
        self._live: dict[int, LiveRequest] = {}
        self._numbers = count(1)
        self._tasks = count(1)
        self._first_tokens_due = 0
        self._prompt_rate = RateMeter(time.monotonic())
        self._could_serve_s = -math.inf

    # Requests.

    def submit(self, request: GenerationRequest) -> LiveRequest:
        """Start a request; see ``generation.Generator``."""
        if not admission.admits(self._first_tokens_due, self._limits.max_waiting_requests):
            self._make_room(request)
        now_s = time.monotonic()
        live = LiveRequest(
            request, self._cancel, next(self._numbers), submitted_s=now_s, waiting_since_s=now_s
        )
        self._first_tokens_due += 1
        if self._queue.is_clear and self._start_if_room(live):
            live.was_started = True
            return live
        self._queue.add(live)
        self._dispatch()
        return live

    def _make_room(self, request: GenerationRequest) -> None:
        """End a request that waits for the sake of a new one.

        Raises:
            Overloaded: the new one is the one that has to go.
        """
        victim = self._queue.to_displace(request.client, request.priority)
        self._metrics.refused(displaced=victim is not None)
        pending = sum(self.roster.cluster.pending_tokens) + self._queue.prompt_tokens
        overloaded = Overloaded(
            f"{self._first_tokens_due} requests already wait for their first token",
            admission.retry_after_s(pending, self._prompt_rate.per_s(time.monotonic())),
        )
        if victim is None:
            raise overloaded
        self._give_up(victim, overloaded)

    def unavailable_reason(self) -> str | None:
        """Why no request can be served now, or None."""
        if can_serve(self.roster.cluster):
            return None
        if not any(self.roster.cluster.up):
            return "no machine is connected"
        return "no machine answers" if self.pools.is_any_quiet else "every machine is draining"

    def fail_overdue(self, now_s: float) -> None:
        """Give up the requests that have waited too long; to be called every second or so."""
        self._quarantine.release_due(now_s)
        reason = self.unavailable_reason()
        if reason is None:
            self._could_serve_s = now_s
        waiting = list(self._queue)
        self._metrics.waiting([live.priority for live in waiting])
        for live in waiting:
            if now_s - live.waiting_since_s > self._limits.max_wait_s:
                waited = f"no machine had room for {self._limits.max_wait_s:g} s"
                self._give_up(live, Unavailable(waited))
                continue
            since_s = self._queue.parked_since_s(live)
            why = reason
            if since_s is not None:
                why = f"no machine that is there holds {self._needed_tokens(live)} tokens of cache"
            elif reason is not None:
                since_s = max(live.waiting_since_s, self._could_serve_s)
            if since_s is not None and now_s - since_s > self._limits.max_wait_for_machine_s:
                waited = f"{why}, for {self._limits.max_wait_for_machine_s:g} s"
                self._give_up(live, Unavailable(waited))

    def halted(self, now_s: float) -> set[int]:
        """The machines that do nothing of what they have to do, for whoever can end them; what
        others have forgotten is taken up again elsewhere. To be called every second or so."""
        halted, forgotten = self._progress.overdue(self._live.values(), now_s)
        for live in forgotten:
            live.attempt_failed()
            self._on_engine_failed(live.owing, live, in_company=False)
            self._retry(live, f"forgotten for {self._limits.max_stall_s:g} s")
        if forgotten:
            self._dispatch()
        return halted

    def _give_up(self, live: LiveRequest, error: Exception) -> None:
        """End a request that waits."""
        self._queue.remove(live)
        self._end(live)
        live.fail(error)

    def _dispatch(self) -> None:
        """Send waiting requests to machines, in order, as far as there is room."""
        if self._queue.is_clear:
            return
        for live in self._queue.go_through(self._try, time.monotonic()):
            needed, largest = self._needed_tokens(live), self.roster.largest_tokens
            if needed > largest:
                reason = f"it needs {needed} tokens of cache, and the largest machine has {largest}"
                self._give_up(live, Unavailable(reason))
            else:
                log.warning("request %s waits for a larger machine", live.request.request_id)

    def _try(self, live: LiveRequest) -> Tried:
        if self._start_if_room(live):
            return Tried.STARTED
        cluster = self.roster.cluster
        if could_hold(cluster, self._needed_tokens(live)) or not can_serve(cluster):
            return Tried.NO_ROOM
        return Tried.NO_MACHINE

    def _start_if_room(self, live: LiveRequest) -> bool:
        place = self._place_elsewhere if live.avoid else self._place
        prompt, token = place(live)
        if prompt == NOBODY:
            return False
        for machine in (prompt, token):
            self.pools.look(machine)
        self._ledger.charge(live, prompt, token)
        self._start(live)
        return True

    def _place(self, live: LiveRequest) -> tuple[int, int]:
        """Choose its machines, in one group of machines that reach each other after the other."""
        groups = self.roster.reach.groups()
        if not groups:
            return self._place_among_all(live)
        cluster = self.roster.cluster
        everybody = {machine for group in groups for machine in group}
        for group in least_pending_first(groups, list(cluster.pending_tokens)):
            with left_out(cluster, everybody.difference(group)):
                placed = self._place_among_all(live)
            if placed[0] != NOBODY:
                return placed
        return NOBODY, NOBODY

    def _place_among_all(self, live: LiveRequest) -> tuple[int, int]:
        cluster, tokens = self.roster.cluster, len(live.history)
        one_token = live.max_history_tokens - tokens == 1
        needed, priority = self._needed_tokens(live), live.request.priority
        request = PlacementRequest(live.number, live.attempts, priority, tokens, needed, one_token)
        placement = self._decide(cluster, request, self._rules)
        prompt, token, pulls = placement
        if prompt == NOBODY:
            return NOBODY, NOBODY
        if pulls:
            pull(cluster, placement, not one_token)
        return prompt, prompt if one_token else token

    def _place_elsewhere(self, live: LiveRequest) -> tuple[int, int]:
        """The same, without the machines that failed it as long as another could run it."""
        cluster = self.roster.cluster
        with left_out(cluster, live.avoid):
            placed = self._place(live)
            if placed[0] != NOBODY or could_hold(cluster, self._needed_tokens(live)):
                return placed
        live.avoid = frozenset()
        return self._place(live)

    def _needed_tokens(self, live: LiveRequest) -> int:
        """The cache that its next attempt needs to begin with."""
        return self.roster.cache_tokens(len(live.history) + 1)

    def _start(self, live: LiveRequest) -> None:
        live.state = RequestState.PROMPT
        live.task = next(self._tasks)
        live.attempts += 1
        live.is_alone = live.failure_count.is_suspect
        live.moved_s = time.monotonic()
        self._live[live.task] = live
        spec = TaskSpec(
            live.task,
            live.history,
            len(live.request.prompt),
            live.max_history_tokens,
            live.request.sampling,
            live.request.stop_token_ids,
            live.priority,
            live.number,
            live.is_alone,
        )
        source = self.roster.link(live.prompt_machine)
        target = self.roster.link(live.token_machine)
        if source is target:
            source.send(RunPrompt(spec))
            return
        ranks = len(source.register.addresses)
        target.send(Expect(spec, source.register.machine_id, ranks))
        source.send(RunPrompt(spec, target.register.addresses))

    def _leave_machines(self, live: LiveRequest, tell: bool) -> None:
        """Take back what the present attempt was charged; ``tell`` its machines to drop it."""
        if self._live.pop(live.task, None) is None:
            return
        self._ledger.attempt_ended(live)
        if not tell:
            return
        for machine in {live.prompt_machine, live.token_machine}:
            link = self.roster.links[machine]
            if link is not None:
                link.send(Cancel(live.task))

    def _end(self, live: LiveRequest, tell: bool = True) -> None:
        if live.state is RequestState.ENDED:
            return
        if not live.has_output:
            self._first_tokens_due -= 1
        live.state = RequestState.ENDED
        self._leave_machines(live, tell)

    def _cancel(self, live: LiveRequest) -> None:
        """The client wants no more of it."""
        if live.state is RequestState.WAITING:
            self._queue.remove(live)
        self._end(live)
        self._dispatch()

    def _retry(self, live: LiveRequest, reason: str) -> None:
        """Take a request up again elsewhere, from its prompt and its tokens so far; or give it up,
        if it failed too often."""
        self._leave_machines(live, tell=True)
        live.forget_attempt()
        if live.failure_count.is_enough(self._limits.max_failures):
            self._end(live)
            count = live.failures
            live.fail(GenerationFailed(f"given up after {count} failures; last: {reason}"))
            return
        live.state = RequestState.WAITING
        live.waiting_since_s = time.monotonic()
        self._queue.add(live)

    # Machines.

    def join(self, link: MachineLink) -> int:
        """Welcome a machine, new or lost before, into the cluster; returns its index.

        Raises:
            ValueError: its model or cache does not fit those of the cluster.
        """
        index = self.roster.add(link)
        link.send(Welcome())  # Before anything is asked of it.
        self.pools.joined(index)
        now_s = time.monotonic()
        self._progress.moved(index, now_s)
        self._quarantine.joined(index, now_s)
        self._on_pools_changed()
        return index

    def lose(self, index: int) -> None:
        """A machine is gone: what it was needed for is taken up again elsewhere."""
        self._ledger.hold_back(index, 0)
        name = self.roster.remove(index)
        self.pools.left(index)
        if index in self._reporting:
            self._reporting.remove(index)
            self._metrics.machine_gone(name)
        needing = self._needing(index)
        self._quarantine.lost(index, was_busy=bool(needing))
        self._take_from(index, needing, f"machine {name} was lost")

    def suspect(self, index: int) -> None:
        """A machine says nothing: it gets nothing new, and what it was needed for is taken up again
        elsewhere. It may be heard again, and has its ``Cancel`` for all of that by then."""
        name = self.roster.names[index]
        log.warning("machine %s says nothing: its requests go on elsewhere", name)
        self.pools.set_quiet(index, True)
        self._take_from(index, self._needing(index), f"machine {name} said nothing")

    def heard_again(self, index: int) -> None:
        """A machine that was suspected says something."""
        log.info("machine %s is heard again", self.roster.names[index])
        self.pools.set_quiet(index, False)

    def _needing(self, index: int) -> list[LiveRequest]:
        return [live for live in self._live.values() if _needs(live, index)]

    def _take_from(self, index: int, needing: list[LiveRequest], reason: str) -> None:
        for live in needing:
            live.attempt_failed()
            is_there = live.is_at_prompt and index == live.prompt_machine
            was_alone = live.is_alone and is_there
            live.failure_count = live.failure_count.failed(was_alone)
            self._retry(live, reason)
        self._dispatch()

    def receive(self, index: int, message: ToScheduler) -> None:
        """Take in what machine ``index`` says.

        Raises:
            ValueError: it broke the protocol. What it said before that is taken in.
        """
        releases = self._ledger.releases
        self._heard_s = time.monotonic()
        if not isinstance(message, MachineStatus):
            self._progress.moved(index, self._heard_s)
        match message:
            case Outputs(items=items):
                self._quarantine.succeeded(index)
                for output in items:
                    self._on_output(index, output)
            case MachineStatus():
                self._on_status(index, message)
            case Transferred():
                self._on_transferred(index, message)
            case PromptsStarted(tasks=tasks):
                self._on_prompts_started(index, tasks)
            case TaskFailed():
                self._on_failed(index, message)
            case Preempted(task=task):
                self._on_preempted(index, task)
            case Leave():
                self.pools.leave(index)
        if self._ledger.releases != releases:
            self._dispatch()

    def _on_pools_changed(self) -> None:
        self._quarantine.release_if_needed()
        self._queue.unpark(partial(could_hold, self.roster.cluster))
        self._dispatch()

    def _task_of(self, index: int, task: int) -> LiveRequest | None:
        """The request of a task of machine ``index``; None if it ended meanwhile, in which case
        its Cancel is on the way.

        Raises:
            ValueError: the task is other machines'.
        """
        live = self._live.get(task)
        if live is not None and index not in (live.prompt_machine, live.token_machine):
            raise ValueError(f"it spoke of task {task}, which it does not run")
        return live

    def _on_output(self, index: int, output: Output) -> None:
        live = self._task_of(index, output.task)
        if live is None:
            return
        self._check_output(index, live, output)
        live.moved_s = self._heard_s
        is_first = not live.has_output
        delivered = live.accept(output)
        if not delivered:
            return
        if live.state is RequestState.PROMPT:
            live.state = RequestState.TOKEN
            self._prompt_rate.add(live.at_prompt.pending_tokens, time.monotonic())
            self._ledger.prompt_ended(live)
        self._first_tokens_due -= is_first
        self._queue.serve(live, delivered)
        self._ledger.grown(live)
        if live.is_finished:
            # A request that ends on its prompt machine is still expected on its token machine.
            self._end(live, tell=index != live.token_machine)

    def _check_output(self, index: int, live: LiveRequest, output: Output) -> None:
        if not len(live.history) <= output.position < live.max_history_tokens:
            raise ValueError(
                f"task {output.task}: output at position {output.position}, where "
                f"{len(live.history)} to {live.max_history_tokens - 1} are due"
            )
        vocabulary = self.roster.link(index).register.model.vocab_size
        for token in (output.sample.token, *(token for token, _ in output.sample.top or ())):
            if not 0 <= token < vocabulary:
                raise ValueError(f"task {output.task}: token {token} of {vocabulary}")

    def _on_prompts_started(self, index: int, tasks: list[int]) -> None:
        now_s = self._heard_s
        for task in tasks:
            live = self._task_of(index, task)
            if live is None:
                continue
            live.moved_s = now_s
            self._ledger.prompt_started(live)
            if not live.has_output:
                self._metrics.queued(now_s - live.submitted_s)

    def _on_transferred(self, index: int, message: Transferred) -> None:
        live = self._task_of(index, message.task)
        stats = message.stats
        self._metrics.transfer(stats.bytes, stats.early_bytes, stats.visible_s, stats.transport)
        if live is not None:
            for machine in (live.prompt_machine, live.token_machine):
                self._quarantine.succeeded(machine, in_transfer=True)
            live.moved_s = self._heard_s
            self._ledger.prompt_machine_left(live)

    def _on_failed(self, index: int, failure: TaskFailed) -> None:
        live = self._task_of(index, failure.task)
        if live is None:
            return
        log.warning("request %s: %s; taken up again", live.request.request_id, failure.reason)
        live.attempt_failed()
        if failure.in_transfer:
            self._metrics.transfer_failed()
            self._on_transfer_failed(live)
        else:
            self._on_engine_failed(index, live, failure.in_company)
        self._retry(live, failure.reason)

    def _on_engine_failed(self, index: int, live: LiveRequest, in_company: bool) -> None:
        if in_company:
            live.failure_count = live.failure_count.failed_in_company()
        else:
            live.failure_count = live.failure_count.failed(was_alone=True)
        live.avoid |= {index}
        self._quarantine.failed(index, live.number, False, time.monotonic())

    def _on_transfer_failed(self, live: LiveRequest) -> None:
        """Either end may be to blame. Without the token machine it goes another way, or none: in
        the end the prompt machine computes both phases."""
        live.failure_count = live.failure_count.failed()
        live.avoid |= {live.token_machine}
        for machine in (live.prompt_machine, live.token_machine):
            self._quarantine.failed(machine, live.number, True, time.monotonic())

    def _on_preempted(self, index: int, task: int) -> None:
        """No failure: as long as each attempt brings a token it does not go on for ever."""
        live = self._task_of(index, task)
        self._metrics.preempted()
        if live is None:
            return
        if not live.attempt_tokens:
            live.failure_count = live.failure_count.preempted_for_nothing()
            live.avoid |= {index}
        self._retry(live, "preempted")

    def _on_status(self, index: int, status: MachineStatus) -> None:
        leaving = status.leaving_blocks
        if max(status.used_blocks, sum(leaving.values())) > status.total_blocks:
            raise ValueError(f"{status} has more blocks in use than there are")
        self._progress.stepped(index, status.steps, self._heard_s)
        self._reporting.add(index)
        self._metrics.machine(
            self.roster.names[index],
            status.used_blocks / status.total_blocks,
            status.running_requests,
            status.waiting_requests,
        )
        unowned = sum(blocks for task, blocks in leaving.items() if not self._owns(index, task))
        self._ledger.hold_back(
            index, unowned * self.roster.link(index).register.layout.block_tokens
        )

    def _owns(self, index: int, task: int) -> bool:
        """Whether blocks of a task on machine ``index`` are charged to a request."""
        live = self._live.get(task)
        return live is not None and live.has_cache_on(index)


def _needs(live: LiveRequest, index: int) -> bool:
    """Whether an attempt cannot go on without machine ``index``: the token machine, or the prompt
    machine until the first token is out and the cache is known to have arrived."""
    if index == live.token_machine:
        return True
    is_left = live.state is RequestState.TOKEN and live.at_prompt.kv_tokens == 0
    return index == live.prompt_machine and not is_left
