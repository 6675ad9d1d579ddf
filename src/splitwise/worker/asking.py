"""How a machine asks a policy: what fails is told of in the log, and the default decides."""

import logging
from collections.abc import Callable
from typing import Any, Final

from splitwise.scheduling.policies import default
from splitwise.scheduling.policies.policy import Policy

log = logging.getLogger(__name__)

MAX_COMPLAINTS: Final = 20
"""Each is made once."""


class Asking:
    """The decisions of a machine, by the policy of its worker."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._complaints: set[str] = set()

    def is_own(self, decision: str) -> bool:
        """Whether the policy decides that itself."""
        return decision in self._policy.own

    def ask(self, decision: str, read: Callable[[Any], int], number: int, *told: Any) -> int:
        """What the policy says of request ``number``, as ``read`` has it; ``told`` is what the
        decision is called with."""
        try:
            return read(getattr(self._policy.hooks, decision)(*told))
        except Exception as error:  # noqa: BLE001  whatever a user's function raises
            self._complain(decision, number, f"{type(error).__name__}: {error}")
            return read(getattr(default, decision)(*told))

    def _complain(self, decision: str, number: int, said: str) -> None:
        if said in self._complaints or len(self._complaints) >= MAX_COMPLAINTS:
            return
        self._complaints.add(said)
        log.error(
            "policy %s: %s of request %d raised %s; the default decides",
            self._policy.name,
            decision,
            number,
            said,
        )
