"""The cluster-level scheduler, live: which machines run a request, and what becomes of it.

The life of a request here (states: ``RequestState``):

1. ``submit`` admits it. Where others wait, or there is no room, it goes into the line of
   ``backlog`` (producer: the gateway, consumer: ``_dispatch``): WAITING. Where too many wait, it is
   refused, or takes the place of one whose client has more of them. One that no machine could hold
   waits apart, and for a shorter time, for one that could; if none is known, it is refused.
2. ``_dispatch`` has it placed on a prompt and a token machine in one call (``placer``), in the
   order of ``waiting``, and both told (``attempts``): PROMPT. It runs whenever something has made
   room. A machine pulled into the mixed pool for it is not told: a worker runs what it is asked
   to, whatever its pool.
3. Its first token comes from the prompt machine (``reports``): TOKEN. The others follow from the
   token machine; ``LiveRequest`` puts them in order and wakes the client's reader.
4. The last token, a cancel, or too many failures end it: ENDED. It leaves its machines.
5. A machine that is lost, says nothing, fails the task or preempts it sends the request back into
   the line, before all of its priority that never began, with its tokens so far as part of the
   prompt: the next attempt. It goes to other machines than those that failed it (``blame``), as
   long as there are any, and runs its prompt alone once it may be what they failed of
   (``isolation``).

Everything runs on one asyncio loop, so nothing here needs a lock.
"""

import logging
import time
from functools import partial
from itertools import count

from splitwise.cluster.attempts import Attempts
from splitwise.cluster.backlog import Backlog
from splitwise.cluster.blame import Blame
from splitwise.cluster.decisions import orderer
from splitwise.cluster.ledger import Ledger
from splitwise.cluster.limits import ClusterLimits
from splitwise.cluster.metrics import ClusterMetrics
from splitwise.cluster.placer import Placer
from splitwise.cluster.pools import Pools
from splitwise.cluster.progress import Progress
from splitwise.cluster.quarantine import Quarantine
from splitwise.cluster.reports import Reports
from splitwise.cluster.request import LiveRequest, RequestState
from splitwise.cluster.roster import MachineLink, Roster
from splitwise.cluster.statuses import Statuses
from splitwise.protocol.generation import GenerationFailed, GenerationRequest, Unavailable
from splitwise.protocol.messages import Leave, MachineStatus, ToScheduler, Welcome
from splitwise.scheduling.placement import can_serve, could_hold, is_beyond_all
from splitwise.scheduling.policies.policy import DEFAULT, Policy
from splitwise.scheduling.ranking import NOBODY
from splitwise.scheduling.waiting import Tried

log = logging.getLogger(__name__)


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
        self._metrics = metrics
        self._numbers = count(1)
        self.roster = Roster(model_name)
        self.pools = Pools(self.roster, metrics, on_change=self._on_pools_changed)
        self._placer = Placer(self.roster, limits, policy)
        self._backlog = Backlog(self.roster, limits, self._placer.needed_tokens, orderer(policy))
        self._ledger = Ledger(self.roster, on_idle=self.pools.look)
        self._attempts = Attempts(self.roster, self._ledger)
        self._quarantine = Quarantine(self.roster, self.pools)
        self._blame = Blame(self._quarantine)
        self._progress = Progress(limits.max_stall_s)
        self._statuses = Statuses(
            self.roster, self._attempts, self._ledger, self._progress, metrics
        )
        self._reports = Reports(
            self.roster,
            self._attempts,
            self._ledger,
            self._backlog,
            self._quarantine,
            self._blame,
            metrics,
            on_end=self._end,
            on_lost=self._retry,
        )

    # Requests.

    def submit(self, request: GenerationRequest) -> LiveRequest:
        """Start a request; see ``generation.Generator``."""
        if self._backlog.is_full:
            self._make_room(request)
        now_s = time.monotonic()
        live = LiveRequest(
            request, self._cancel, next(self._numbers), submitted_s=now_s, waiting_since_s=now_s
        )
        self._backlog.first_tokens_due += 1
        if self._backlog.line.is_clear and self._start_if_room(live):
            live.was_started = True
            return live
        self._backlog.line.add(live)
        self._dispatch()
        return live

    def _make_room(self, request: GenerationRequest) -> None:
        """End a request that waits for the sake of a new one.

        Raises:
            Overloaded: the new one is the one that has to go.
        """
        victim = self._backlog.line.to_displace(request.client, request.priority)
        self._metrics.refused(displaced=victim is not None)
        overloaded = self._backlog.overloaded()
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
        self._metrics.waiting([live.priority for live in self._backlog.line])
        for live, error in self._backlog.overdue(self.unavailable_reason(), now_s):
            self._give_up(live, error)

    def halted(self, now_s: float) -> set[int]:
        """The machines that do nothing of what they have to do, for whoever can end them; what
        others have forgotten is taken up again elsewhere. To be called every second or so."""
        halted, forgotten = self._progress.overdue(self._attempts, now_s)
        for live in forgotten:
            self._blame.engine_failed(live.owing, live, in_company=False, now_s=now_s)
            self._retry(live, f"forgotten for {self._limits.max_stall_s:g} s")
        if forgotten:
            self._dispatch()
        return halted

    def _give_up(self, live: LiveRequest, error: Exception) -> None:
        """End a request that waits."""
        self._backlog.line.remove(live)
        self._end(live)
        live.fail(error)

    def _dispatch(self) -> None:
        """Send waiting requests to machines, in order, as far as there is room."""
        if self._backlog.line.is_clear:
            return
        for live in self._backlog.line.go_through(self._try, time.monotonic()):
            needed, largest = self._placer.needed_tokens(live), self.roster.largest_tokens
            if needed > largest:
                reason = f"it needs {needed} tokens of cache, and the largest machine has {largest}"
                self._give_up(live, Unavailable(reason))
            else:
                log.warning("request %s waits for a larger machine", live.request.request_id)

    def _try(self, live: LiveRequest) -> Tried:
        if self._start_if_room(live):
            return Tried.STARTED
        if is_beyond_all(self.roster.cluster, self._placer.needed_tokens(live)):
            return Tried.NO_MACHINE
        return Tried.NO_ROOM

    def _start_if_room(self, live: LiveRequest) -> bool:
        prompt, token = self._placer.place(live)
        if prompt == NOBODY:
            return False
        self.pools.look(prompt)
        self.pools.look(token)
        self._attempts.start(live, prompt, token)
        return True

    def _end(self, live: LiveRequest, tell: bool = True) -> None:
        if live.state is RequestState.ENDED:
            return
        if not live.has_output:
            self._backlog.first_tokens_due -= 1
        live.state = RequestState.ENDED
        self._attempts.leave(live, tell)

    def _cancel(self, live: LiveRequest) -> None:
        """The client wants no more of it."""
        if live.state is RequestState.WAITING:
            self._backlog.line.remove(live)
        self._end(live)
        self._dispatch()

    def _retry(self, live: LiveRequest, reason: str) -> None:
        """Take a request up again elsewhere, from its prompt and its tokens so far; or give it up,
        if it failed too often."""
        self._attempts.leave(live, tell=True)
        live.forget_attempt()
        if live.failure_count.is_enough(self._limits.max_failures):
            self._end(live)
            count = live.failures
            live.fail(GenerationFailed(f"given up after {count} failures; last: {reason}"))
            return
        live.state = RequestState.WAITING
        live.waiting_since_s = time.monotonic()
        self._backlog.line.add(live)

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
        self._statuses.lost(index)
        name = self.roster.remove(index)
        self.pools.left(index)
        needing = self._attempts.needing(index)
        self._quarantine.lost(index, was_busy=bool(needing))
        for live in needing:
            self._blame.machine_lost(index, live, in_company=len(needing) > 1)
            self._retry(live, f"machine {name} was lost")
        self._dispatch()

    def suspect(self, index: int) -> None:
        """A machine says nothing: it gets nothing new, and what it was needed for is taken up again
        elsewhere. It may be heard again, and has its ``Cancel`` for all of that by then."""
        name = self.roster.names[index]
        log.warning("machine %s says nothing: its requests go on elsewhere", name)
        self.pools.set_quiet(index, True)
        for live in self._attempts.needing(index):
            self._blame.machine_silent(live)
            self._retry(live, f"machine {name} said nothing")
        self._dispatch()

    def heard_again(self, index: int) -> None:
        """A machine that was suspected says something."""
        log.info("machine %s is heard again", self.roster.names[index])
        self.pools.set_quiet(index, False)

    def receive(self, index: int, message: ToScheduler) -> None:
        """Take in what machine ``index`` says.

        Raises:
            ValueError: it broke the protocol. What it said before that is taken in.
        """
        releases = self._ledger.releases
        now_s = time.monotonic()
        if isinstance(message, MachineStatus):
            self._statuses.take(index, message, now_s)
        else:
            self._progress.moved(index, now_s)
            if isinstance(message, Leave):
                self.pools.leave(index)
            else:
                self._reports.take(index, message, now_s)
        if self._ledger.releases != releases:
            self._dispatch()

    def _on_pools_changed(self) -> None:
        self._quarantine.release_if_needed()
        self._backlog.line.unpark(partial(could_hold, self.roster.cluster))
        self._dispatch()
