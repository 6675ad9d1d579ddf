"""When a machine gets no more requests for a while, because what it is given fails.

1. ``FAILED_REQUESTS`` different requests in a row fail on a machine, with no success between, or
   one after it was let in again: quarantine. One request that fails everywhere puts nobody there.
2. It is let in again after ``quarantine_s``, the longer the more often it had to go, and is on
   probation until its first success.
3. A machine without which nobody could serve is never kept out.

Iterations and transfers are counted apart: a machine whose transfers all fail computes well.
"""

from dataclasses import dataclass, field
from typing import Final

FAILED_REQUESTS: Final = 3
FIRST_QUARANTINE_S: Final = 5.0
LONGEST_QUARANTINE_S: Final = 300.0


def quarantine_s(times: int) -> float:
    """How long a machine is kept out that was ``times`` times before, without standing the test."""
    return min(FIRST_QUARANTINE_S * 2.0**times, LONGEST_QUARANTINE_S)


@dataclass
class MachineRecord:
    """How a machine has fared lately. Times are the caller's, in seconds."""

    engine_failed: set[int] = field(default_factory=set)
    """Requests whose iterations failed since one last succeeded."""
    transfer_failed: set[int] = field(default_factory=set)
    """The same of transfers."""
    times: int = 0
    until_s: float = 0.0
    """The end of the last quarantine."""
    is_on_probation: bool = False

    def failed(self, request: int, in_transfer: bool) -> bool:
        """Count a failure; says whether the machine is to be kept out for it."""
        failed = self.transfer_failed if in_transfer else self.engine_failed
        failed.add(request)
        return len(failed) >= (1 if self.is_on_probation else FAILED_REQUESTS)

    def succeeded(self, in_transfer: bool) -> None:
        """An iteration, or a transfer, went well."""
        failed = self.transfer_failed if in_transfer else self.engine_failed
        failed.clear()
        if not (self.engine_failed or self.transfer_failed):
            self.is_on_probation = False

    def keep_out(self, now_s: float) -> float:
        """Begin a quarantine; returns when it ends."""
        lasted_s = quarantine_s(self.times - 1) if self.times else 0.0
        if now_s - self.until_s > lasted_s:
            self.times = 0  # it has been well for longer than it was kept out
        self.until_s = now_s + quarantine_s(self.times)
        self.times += 1
        return self.until_s

    def let_in(self) -> None:
        """The quarantine is over: the machine has to show that it is well."""
        self.engine_failed.clear()
        self.transfer_failed.clear()
        self.is_on_probation = True
