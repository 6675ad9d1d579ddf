"""What a user asks: a load, machines on offer, targets, and what is to be best.

``Question`` is complete: the same question has the same answer, on any machine.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from splitwise.hardware import IterationTimes
from splitwise.planning.demand import Demand
from splitwise.planning.errors import PlanningError
from splitwise.simulation.simulate import Options
from splitwise.simulation.slowdown import PAPER_SLOS, Slo

DEFAULT_STOCK: Final = 64
DEFAULT_RULES: Final = Options()


class Objective(StrEnum):
    """What the best cluster has most, or least, of."""

    THROUGHPUT = "throughput"
    COST = "cost"
    POWER = "power"
    MACHINES = "machines"
    ENERGY = "energy"


@dataclass(frozen=True, eq=False)
class Offer:
    """A machine kind that can be had: at most ``stock`` of them."""

    name: str
    times: IterationTimes
    stock: int = DEFAULT_STOCK

    def __post_init__(self) -> None:
        if self.stock < 1:
            raise PlanningError(
                f"stock of {self.name} is {self.stock}; offer at least 1, or leave the kind out"
            )
        for name in ("dollars_per_hour", "provisioned_watts"):
            value = getattr(self.times, name)
            if not 0 <= value < math.inf:
                raise PlanningError(f"{name} of {self.name} is {value:g}; give 0 or more")


@dataclass(frozen=True)
class Limits:
    """What a cluster may cost at most: dollars an hour, provisioned watts, machines."""

    dollars_per_hour: float = math.inf
    watts: float = math.inf
    machines: float = math.inf

    def __post_init__(self) -> None:
        for name in ("dollars_per_hour", "watts", "machines"):
            if not getattr(self, name) > 0:
                raise PlanningError(f"{name} is {getattr(self, name):g}; allow more than 0")


@dataclass(frozen=True, eq=False)
class Question:
    """Everything that an answer depends on.

    ``rate_per_s`` is the load to carry; None asks for as much as possible and goes with the
    objective throughput only. ``reference`` is the machine that slowdowns are measured against. A
    cluster carries a rate if all ``slos`` hold with each of the ``seeds``; rates are looked for in
    steps of ``resolution_per_s``, and no finer than the share ``relative_resolution`` of the rate.
    """

    demand: Demand
    offers: tuple[Offer, ...]
    reference: IterationTimes
    objective: Objective = Objective.COST
    rate_per_s: float | None = None
    limits: Limits = Limits()
    slos: tuple[Slo, ...] = PAPER_SLOS
    options: Options = DEFAULT_RULES
    seeds: tuple[int, ...] = (1, 2, 3)
    resolution_per_s: float = 1.0
    relative_resolution: float = 0.0

    def __post_init__(self) -> None:
        if not self.offers:
            raise PlanningError("offers: none; offer at least one machine kind")
        names = [offer.name for offer in self.offers]
        if len(set(names)) < len(names):
            raise PlanningError(f"offers: {', '.join(names)}; name each kind once")
        if not self.slos:
            raise PlanningError("slos: none; without a target any cluster would do")
        if not self.seeds:
            raise PlanningError("seeds: none; give at least one")
        if not 0 < self.resolution_per_s < math.inf:
            raise PlanningError(f"resolution_per_s is {self.resolution_per_s}; give more than 0")
        if self.objective is Objective.THROUGHPUT:
            if self.rate_per_s is not None:
                raise PlanningError(
                    f"rate_per_s is {self.rate_per_s:g}, but the objective is throughput; leave "
                    "the rate out, or ask for least cost, power, machines or energy"
                )
        elif self.rate_per_s is None or not self.rate_per_s > 0:
            raise PlanningError(
                f"rate_per_s is {self.rate_per_s}; say how many requests a second have to be "
                "carried, or ask for the most throughput"
            )
        elif self.rate_per_s < self.resolution_per_s:
            raise PlanningError(
                f"resolution_per_s is {self.resolution_per_s:g}, coarser than the rate "
                f"{self.rate_per_s:g}; make it a fraction of the rate"
            )
