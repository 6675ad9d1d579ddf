"""Which machines a request gets, of those that can and may run it together.

1. ``scheduler`` asks when the request is first in line (``place``).
2. Machines that failed it are left out, as long as another could run it.
3. Where not all machines reach each other, one group of those that do is asked after the other.
4. The policy decides (``decisions``); machines that it pulls are moved into the mixed pool.
"""

from splitwise.cluster.decisions import decider
from splitwise.cluster.limits import ClusterLimits
from splitwise.cluster.request import LiveRequest
from splitwise.cluster.roster import Roster
from splitwise.scheduling.cluster_state import left_out
from splitwise.scheduling.decision import PlacementRequest, PlacementRules
from splitwise.scheduling.enacting import pull
from splitwise.scheduling.placement import could_hold
from splitwise.scheduling.policies.policy import Policy
from splitwise.scheduling.ranking import NOBODY
from splitwise.scheduling.reach import least_pending_first


class Placer:
    """Finds machines for requests, by the policy of a server."""

    def __init__(self, roster: Roster, limits: ClusterLimits, policy: Policy) -> None:
        self._roster = roster
        self._decide = decider(policy)
        self._rules = PlacementRules(
            limits.prompt_queue_threshold_tokens, limits.change_roles, may_wait=True
        )

    def needed_tokens(self, live: LiveRequest) -> int:
        """The cache that its next attempt needs to begin with."""
        return self._roster.cache_tokens(len(live.history) + 1)

    def could_any_hold(self, live: LiveRequest) -> bool:
        """Whether a machine that takes requests could hold it, however full it is now."""
        return could_hold(self._roster.cluster, self.needed_tokens(live))

    def place(self, live: LiveRequest) -> tuple[int, int]:
        """Its prompt and its token machine; NOBODY twice if it has to wait."""
        if not live.avoid:
            return self._place(live)
        with left_out(self._roster.cluster, live.avoid):
            placed = self._place(live)
            if placed[0] != NOBODY or self.could_any_hold(live):
                return placed
        live.avoid = frozenset()
        return self._place(live)

    def _place(self, live: LiveRequest) -> tuple[int, int]:
        groups = self._roster.reach.groups()
        if not groups:
            return self._place_among_all(live)
        cluster = self._roster.cluster
        everybody = {machine for group in groups for machine in group}
        for group in least_pending_first(groups, list(cluster.pending_tokens)):
            with left_out(cluster, everybody.difference(group)):
                placed = self._place_among_all(live)
            if placed[0] != NOBODY:
                return placed
        return NOBODY, NOBODY

    def _place_among_all(self, live: LiveRequest) -> tuple[int, int]:
        cluster, tokens = self._roster.cluster, len(live.history)
        one_token = live.max_history_tokens - tokens == 1
        needed, priority = self.needed_tokens(live), live.request.priority
        request = PlacementRequest(live.number, live.attempts, priority, tokens, needed, one_token)
        placement = self._decide(cluster, request, self._rules)
        prompt, token, pulls = placement
        if prompt == NOBODY:
            return NOBODY, NOBODY
        if pulls:
            pull(cluster, placement, not one_token)
        return prompt, prompt if one_token else token
