"""Clusters as a planner sees them: so many machines of these kinds in those pools.

A ``Family`` is what can be counted: one kind in the mixed pool (the baseline), or a kind of prompt
and a kind of token machines. A ``Design`` is a family with its counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final, Protocol

from splitwise.planning.question import Limits, Offer
from splitwise.scheduling.pool import Pool
from splitwise.simulation.simulate import MachineGroup

TOLERANCE: Final = 1 + 1e-9
"""Sums of prices may pass a limit by rounding."""


@dataclass(frozen=True, eq=False)
class Family:
    """Kinds of machines and the pools they live in, in order."""

    offers: tuple[Offer, ...]
    pools: tuple[Pool, ...]

    @property
    def name(self) -> str:
        """Such as ``dgx-h100 prompt + dgx-a100 token``."""
        kinds = zip(self.offers, self.pools, strict=True)
        return " + ".join(f"{offer.name} {pool.name.lower()}" for offer, pool in kinds)

    @property
    def is_split(self) -> bool:
        """Whether the phases run on different machines."""
        return len(self.pools) > 1


class Totals(Protocol):
    """What a cluster is charged by."""

    @property
    def dollars_per_hour(self) -> float: ...
    @property
    def watts(self) -> float: ...
    @property
    def machines(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Design:
    """A cluster: ``counts`` of the family's groups, and its prompt queue threshold (tokens).

    The threshold is None where the question's rules apply.
    """

    family: Family
    counts: tuple[int, ...]
    queue_threshold_tokens: int | None = None

    @property
    def name(self) -> str:
        """Such as ``25P dgx-h100 + 26T dgx-a100``."""
        groups = zip(self.counts, self.family.pools, self.family.offers, strict=True)
        return " + ".join(f"{count}{pool.name[0]} {offer.name}" for count, pool, offer in groups)

    @property
    def dollars_per_hour(self) -> float:
        """Of all machines."""
        return self._sum([offer.times.dollars_per_hour for offer in self.family.offers])

    @property
    def watts(self) -> float:
        """Provisioned for all machines."""
        return self._sum([offer.times.provisioned_watts for offer in self.family.offers])

    @property
    def machines(self) -> int:
        """How many."""
        return sum(self.counts)

    def _sum(self, each: Sequence[float]) -> float:
        return sum(count * one for count, one in zip(self.counts, each, strict=True))

    def groups(self) -> list[MachineGroup]:
        """As the simulator takes them."""
        parts = zip(self.family.offers, self.family.pools, self.counts, strict=True)
        return [MachineGroup(offer.name, offer.times, pool, count) for offer, pool, count in parts]

    def is_within(self, limits: Limits) -> bool:
        """Whether it keeps the limits and the stock."""
        taken: dict[str, int] = {}
        for offer, count in zip(self.family.offers, self.counts, strict=True):
            taken[offer.name] = taken.get(offer.name, 0) + count
        in_stock = all(taken[offer.name] <= offer.stock for offer in self.family.offers)
        return in_stock and is_within(self, limits)

    def with_counts(self, *counts: int) -> "Design":
        """The same family and threshold in other numbers."""
        return replace(self, counts=counts)


def is_within(totals: Totals, limits: Limits) -> bool:
    """Whether the totals keep the limits, but for rounding."""
    return (
        totals.dollars_per_hour <= limits.dollars_per_hour * TOLERANCE
        and totals.watts <= limits.watts * TOLERANCE
        and totals.machines <= limits.machines
    )


def families(offers: Sequence[Offer]) -> list[Family]:
    """Every baseline, and every pair of a prompt and a token kind."""
    mixed = [Family((offer,), (Pool.MIXED,)) for offer in offers]
    split = [
        Family((prompt, token), (Pool.PROMPT, Pool.TOKEN))
        for prompt, token in product(offers, repeat=2)
    ]
    return mixed + split


def most_within(family: Family, fixed: tuple[int, ...], limits: Limits) -> int:
    """How many machines of the family's last group fit beside ``fixed`` ones of those before."""
    last = family.offers[-1]
    rest = Design(family, (*fixed, 0))
    room = [
        last.stock
        - sum(
            count
            for offer, count in zip(family.offers, fixed, strict=False)
            if offer.name == last.name
        )
    ]
    for allowed, taken, each in (
        (limits.dollars_per_hour, rest.dollars_per_hour, last.times.dollars_per_hour),
        (limits.watts, rest.watts, last.times.provisioned_watts),
        (limits.machines, rest.machines, 1.0),
    ):
        left = allowed * TOLERANCE - taken
        if left < 0:
            return 0
        if math.isfinite(left) and each > 0:
            room.append(math.floor(left / each))
    return max(min(room), 0)
