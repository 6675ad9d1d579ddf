"""What every request is charged to its machines, in the numbers that ``placement`` decides on.

The charges of an attempt, and what takes each back:

1. ``waiting``, prompt machine: 1, until the prompt is in an iteration (``PromptsStarted``).
2. ``pending_tokens``, prompt machine: the prompt, until its first token is out.
3. ``pending_tokens``, token machine: 1, until the attempt ends.
4. ``kv_tokens``, token machine: prompt, output so far and the next token, until the attempt ends.
5. ``decodes``, token machine: 1 if there is a token phase, until the attempt ends.
6. ``kv_tokens``, prompt machine, if it is another: the prompt and a token, until the cache has
   arrived on the token machine (``Transferred``).

The end of an attempt takes back whatever is left, at once, and so does the loss of a machine.

7. ``kv_tokens``, beside those of attempts: blocks of tasks that ended, which a transfer keeps on
   the machine, as that says in each status (``hold_back``). They are told by their task, so nothing
   is counted twice, whatever is on its way meanwhile; and only those that were there at two
   statuses in a row.

Cache comes in whole blocks, as on the machines. So a token machine really has room for a request
beside all that was placed before it, and machines that push to each other, which role changes
bring about, never wait for each other in a circle.
"""

from collections.abc import Callable

from splitwise.cluster.request import Charge, LiveRequest
from splitwise.cluster.roster import Roster
from splitwise.scheduling.cluster_state import go_home, is_idle, rank


class Ledger:
    """The only writer of the loads in ``roster.cluster``; keeps the rankings in step, and sends
    machines home with whose last charge the reason for their new role is gone."""

    def __init__(self, roster: Roster, on_idle: Callable[[int], None]) -> None:
        """``on_idle`` gets each machine that nothing is charged to any more, when it is home."""
        self._roster = roster
        self._on_idle = on_idle
        self._held_back: dict[int, Charge] = {}
        """By machine, what belongs to no attempt."""
        self.releases = 0
        """How often a machine was relieved of something, so that what waits may find room."""

    def charge(self, live: LiveRequest, prompt: int, token: int) -> None:
        """An attempt begins on these machines."""
        tokens = len(live.history)
        cache = self._roster.cache_tokens(tokens + 1)
        live.at_prompt, live.at_token = Charge(prompt), Charge(token)
        self._set(live.at_prompt, tokens, waiting=1, kv_tokens=cache if prompt != token else 0)
        decodes = int(live.max_history_tokens - tokens > 1)
        self._set(live.at_token, 1, kv_tokens=cache, decodes=decodes)

    def prompt_started(self, live: LiveRequest) -> None:
        """The prompt is in an iteration."""
        charge = live.at_prompt
        self._set(charge, charge.pending_tokens, kv_tokens=charge.kv_tokens)

    def prompt_ended(self, live: LiveRequest) -> None:
        """The first token is out."""
        self._set(live.at_prompt, kv_tokens=live.at_prompt.kv_tokens)

    def grown(self, live: LiveRequest) -> None:
        """The output is longer."""
        cache, charge = self._roster.cache_tokens(len(live.history) + 1), live.at_token
        if cache != charge.kv_tokens:
            self._set(charge, charge.pending_tokens, kv_tokens=cache, decodes=charge.decodes)

    def prompt_machine_left(self, live: LiveRequest) -> None:
        """The prompt machine has nothing more to do with it."""
        self._set(live.at_prompt)

    def attempt_ended(self, live: LiveRequest) -> None:
        """Neither machine has anything more to do with it."""
        self._set(live.at_prompt)
        self._set(live.at_token)

    def hold_back(self, machine: int, kv_tokens: int) -> None:
        """So much cache of a machine is taken by what belongs to no attempt."""
        charge = self._held_back.setdefault(machine, Charge(machine))
        self._set(charge, kv_tokens=kv_tokens)

    def _set(
        self,
        charge: Charge,
        pending_tokens: int = 0,
        waiting: int = 0,
        kv_tokens: int = 0,
        decodes: int = 0,
    ) -> None:
        """Make the charge what is given, and tell the machine's numbers by how much it changed."""
        more_pending = pending_tokens - charge.pending_tokens
        more_waiting = waiting - charge.waiting
        more_kv = kv_tokens - charge.kv_tokens
        more_decodes = decodes - charge.decodes
        if not (more_pending or more_waiting or more_kv or more_decodes):
            return
        cluster, machine = self._roster.cluster, charge.machine
        if more_pending:
            charge.pending_tokens = pending_tokens
            cluster.pending_tokens[machine] += more_pending
        if more_waiting:
            charge.waiting = waiting
            cluster.waiting[machine] += more_waiting
        if more_kv:
            charge.kv_tokens = kv_tokens
            cluster.kv_tokens[machine] += more_kv
        if more_decodes:
            charge.decodes = decodes
            cluster.decodes[machine] += more_decodes
        rank(cluster, machine)
        if more_pending >= 0 and more_waiting >= 0 and more_kv >= 0 and more_decodes >= 0:
            return
        self.releases += 1
        if is_idle(cluster, machine):
            go_home(cluster, machine)
            self._on_idle(machine)
