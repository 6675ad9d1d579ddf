"""The policy's word on a request, as far as it can be done.

A policy that raises, or says what cannot be, costs nobody anything: the default decides for that
request, and the log says why.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from splitwise.scheduling.cluster_state import ClusterState, read_only
from splitwise.scheduling.decision import (
    Placement,
    PlacementRequest,
    PlacementRules,
    WaitingRequest,
)
from splitwise.scheduling.enacting import (
    EXPLAINED,
    Fault,
    fault_of,
    has_to_wait,
    in_one_place,
    read_order,
    read_placement,
)
from splitwise.scheduling.fair_level import Waiter
from splitwise.scheduling.policies import default
from splitwise.scheduling.policies.policy import Policy
from splitwise.scheduling.ranking import NOBODY

log = logging.getLogger(__name__)

QUIET_S: Final = 60.0
"""How long the same complaint is not repeated."""


Decide = Callable[[ClusterState, PlacementRequest, PlacementRules], Placement]


def decider(policy: Policy) -> Decide:
    """Who places requests: (machines that can run it now, or NOBODY for one that has to wait)."""
    return Decisions(policy).place if "place" in policy.own else default.place


def orderer(policy: Policy) -> Callable[[Waiter], float] | None:
    """When who waits goes, the least first; None where the policy leaves it to shares."""
    return Decisions(policy).order if "order" in policy.own else None


class Decisions:
    """What a policy decides, checked."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._seen: tuple[ClusterState, ClusterState] | None = None
        self._complained_s: dict[str, float] = {}

    def place(
        self, cluster: ClusterState, request: PlacementRequest, rules: PlacementRules
    ) -> Placement:
        """Who computes the request; see ``default.place``."""
        try:
            said: Any = self._policy.hooks.place(self._read_only(cluster), request, rules)
            placement = in_one_place(request, read_placement(said))
        except Exception as error:  # noqa: BLE001  whatever a user's function raises
            self._complain("place", request.number, f"raised {type(error).__name__}: {error}")
            return default.place(cluster, request, rules)
        fault = Fault(fault_of(cluster, request, rules, placement))
        if fault is not Fault.NONE:
            chosen = f"said {placement.prompt}, {placement.token}: {EXPLAINED[fault]}"
            self._complain("place", request.number, chosen)
            return default.place(cluster, request, rules)
        if has_to_wait(cluster, request, placement):
            return Placement(NOBODY, NOBODY, False)
        return placement

    def order(self, waiter: Waiter) -> float:
        """When a request goes that waits; see ``default.order``."""
        request = WaitingRequest(waiter.number, waiter.priority, waiter.prompt_tokens)
        try:
            return read_order(self._policy.hooks.order(request))
        except Exception as error:  # noqa: BLE001  whatever a user's function raises
            self._complain("order", request.number, f"raised {type(error).__name__}: {error}")
            return default.order(request)

    def _read_only(self, cluster: ClusterState) -> ClusterState:
        """What the policy sees: the numbers are the ledger's to change."""
        if self._seen is None or self._seen[0] is not cluster:
            self._seen = cluster, read_only(cluster)
        return self._seen[1]

    def _complain(self, decision: str, number: int, what: str) -> None:
        now_s = time.monotonic()
        if now_s - self._complained_s.get(what, -QUIET_S) < QUIET_S:
            return
        self._complained_s = {
            said: at_s for said, at_s in self._complained_s.items() if now_s - at_s < QUIET_S
        }
        self._complained_s[what] = now_s
        log.error(
            "policy %s: %s of request %d %s; the default decides",
            self._policy.name,
            decision,
            number,
            what,
        )
