"""The attempts under way: a task on a prompt and a token machine each.

The life of an attempt:

1. ``start``, on the machines that ``placer`` found: they are charged (``ledger``), then told,
   the token machine first. PROMPT.
2. ``first_token_out``: TOKEN.
3. ``leave``, when its request ends or is taken up again elsewhere: what is left of the charges is
   taken back, and every machine that may still hold something of it is told. What is said of the
   task after that is of nobody's any more.
"""

import time
from collections.abc import Iterator
from itertools import count

from splitwise.cluster.ledger import Ledger
from splitwise.cluster.request import LiveRequest, RequestState
from splitwise.cluster.roster import Roster
from splitwise.protocol.messages import Cancel, Expect, RunPrompt, TaskSpec


class Attempts:
    """The requests that have machines, by the task of their attempt."""

    def __init__(self, roster: Roster, ledger: Ledger) -> None:
        self._roster = roster
        self._ledger = ledger
        self._live: dict[int, LiveRequest] = {}
        self._tasks = count(1)

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[LiveRequest]:
        return iter(self._live.values())

    def start(self, live: LiveRequest, prompt: int, token: int) -> None:
        """Charge two machines, or one for both phases, with a request, and tell them."""
        self._ledger.charge(live, prompt, token)
        live.state = RequestState.PROMPT
        live.task = next(self._tasks)
        live.attempts += 1
        live.is_alone = live.failure_count.is_suspect
        live.moved_s = time.monotonic()
        self._live[live.task] = live
        spec = _spec_of(live)
        source = self._roster.link(prompt)
        if prompt == token:
            source.send(RunPrompt(spec))
            return
        target = self._roster.link(token)
        ranks = len(source.register.addresses)
        target.send(Expect(spec, source.register.machine_id, ranks))
        source.send(RunPrompt(spec, target.register.addresses))

    def first_token_out(self, live: LiveRequest) -> None:
        """The prompt phase of an attempt is over."""
        live.state = RequestState.TOKEN
        self._ledger.prompt_ended(live)

    def leave(self, live: LiveRequest, tell: bool) -> None:
        """Take back what the attempt was charged; ``tell`` its machines to drop it. Nothing to do
        for a request that has none."""
        if self._live.pop(live.task, None) is None:
            return
        self._ledger.attempt_ended(live)
        if not tell:
            return
        for machine in {live.prompt_machine, live.token_machine}:
            link = self._roster.links[machine]
            if link is not None:
                link.send(Cancel(live.task))

    def of_task(self, machine: int, task: int) -> LiveRequest | None:
        """The request of a task that a machine speaks of; None if it ended meanwhile, in which case
        its Cancel is on the way.

        Raises:
            ValueError: the task is other machines'.
        """
        live = self._live.get(task)
        if live is not None and machine not in (live.at_prompt.machine, live.at_token.machine):
            raise ValueError(f"it spoke of task {task}, which it does not run")
        return live

    def owns_cache(self, machine: int, task: int) -> bool:
        """Whether blocks of a task on a machine are charged to a request."""
        live = self._live.get(task)
        return live is not None and live.has_cache_on(machine)

    def needing(self, machine: int) -> list[LiveRequest]:
        """Those that cannot go on without a machine."""
        return [live for live in self if live.needs(machine)]


def _spec_of(live: LiveRequest) -> TaskSpec:
    request = live.request
    return TaskSpec(
        live.task,
        live.history,
        len(request.prompt),
        live.max_history_tokens,
        request.sampling,
        request.stop_token_ids,
        request.priority,
        live.number,
        live.is_alone,
    )
