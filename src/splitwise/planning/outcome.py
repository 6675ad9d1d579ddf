"""What one simulation says to a planner."""

import msgspec

from splitwise.simulation.slowdown import SloCheck


class Percentiles(msgspec.Struct, frozen=True):
    """Seconds, of the requests that have the thing."""

    p50: float
    p90: float
    p99: float


class Outcome(msgspec.Struct, frozen=True):
    """A cluster at one rate with one seed. ``watts`` is drawn, on average over the whole run."""

    slos: tuple[SloCheck, ...]
    ttft_s: Percentiles
    tbt_s: Percentiles
    e2e_s: Percentiles
    requests: int
    joules_per_token: float
    watts: float

    @property
    def meets_slos(self) -> bool:
        """Whether every SLO holds."""
        return all(check.is_met for check in self.slos)

    @property
    def missed(self) -> tuple[SloCheck, ...]:
        """The SLOs that do not hold."""
        return tuple(check for check in self.slos if not check.is_met)
