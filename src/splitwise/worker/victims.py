"""The policy's word on who gives its cache up, as far as it is one."""

import logging

from splitwise.scheduling.decision import RunningRequest
from splitwise.scheduling.enacting import read_rank
from splitwise.scheduling.policies import default
from splitwise.scheduling.policies.policy import Policy

log = logging.getLogger(__name__)

MAX_COMPLAINTS = 20
"""Each is made once."""


class Victims:
    """What is decided by the policy of a worker."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._complaints: set[str] = set()

    def rank(self, request: RunningRequest) -> int:
        """How soon a request gives its cache up; see ``default.victim``. A policy that fails is
        told of in the log, and the default decides."""
        try:
            return read_rank(self._policy.hooks.victim(request))
        except Exception as error:  # noqa: BLE001  whatever a user's function raises
            said = f"{type(error).__name__}: {error}"
            if said not in self._complaints and len(self._complaints) < MAX_COMPLAINTS:
                self._complaints.add(said)
                log.error(
                    "policy %s: victim of request %d raised %s; the default decides",
                    self._policy.name,
                    request.number,
                    said,
                )
            return default.victim(request)
