"""What a report shows beyond the plan: simulations around its clusters.

1. ``neighbourhood``: how much clusters with a few machines more or less carry.
2. ``latency_curves``: what requests experience as the rate rises, and what breaks first.

All of it with the question's first seed alone: a plot shows the shape, the plan is the proof.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitwise.planning.design import Design
from splitwise.planning.outcome import Outcome
from splitwise.planning.plan import Plan
from splitwise.planning.question import Question
from splitwise.planning.search import Found
from splitwise.planning.trial import Judge
from splitwise.planning.workers import Crew

SPLIT_REACH: Final = 3
BASELINE_REACH: Final = 6
"""Steps to either side of the best: a map of 7 x 7 clusters, a line of 13."""
STEP_SHARE: Final = 0.1
RATE_SHARES: Final = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0, 1.1, 1.2)
"""Of the highest rate carried: closest where things break."""
MAX_CURVES: Final = 6


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """Clusters around ``best``, which differ in nothing but their counts.

    ``axes`` are the counts of each group, ascending; ``rates_per_s`` is the highest rate that each
    combination carries, and ``is_allowed`` whether limits and stock allow it.
    """

    best: Design
    axes: tuple[tuple[int, ...], ...]
    rates_per_s: NDArray[np.float64]
    is_allowed: NDArray[np.bool_]

    @property
    def place_of_best(self) -> tuple[int, ...]:
        """Where the best lies on each axis."""
        pairs = zip(self.axes, self.best.counts, strict=True)
        return tuple(axis.index(count) for axis, count in pairs)


@dataclass(frozen=True)
class Point:
    """What a cluster does at a rate."""

    rate_per_s: float
    outcome: Outcome


@dataclass(frozen=True, eq=False)
class LatencyCurve:
    """A cluster from a low rate to past ``highest_per_s``, the most that it carries.

    ``beyond`` is the first rate that it does not carry.
    """

    design: Design
    highest_per_s: float
    points: tuple[Point, ...]
    beyond: Point


def neighbourhood(crew: Crew, question: Question, best: Design) -> Neighbourhood:
    """The highest rates of the clusters around ``best``."""
    reach = SPLIT_REACH if best.family.is_split else BASELINE_REACH
    axes = tuple(_counts_around(count, reach) for count in best.counts)
    designs = [best.with_counts(*counts) for counts in product(*axes)]
    rates = crew.map("splits around the best", _with_first_seed(question), Judge.most, designs)
    allowed = [design.is_within(question.limits) for design in designs]
    shape = [len(axis) for axis in axes]
    return Neighbourhood(best, axes, np.reshape(rates, shape), np.reshape(allowed, shape))


def _counts_around(centre: int, reach: int) -> tuple[int, ...]:
    """The centre and up to ``reach`` steps to either side, a tenth of it each, at least 1."""
    step = max(1, round(centre * STEP_SHARE))
    counts = range(centre - reach * step, centre + reach * step + 1, step)
    return tuple(count for count in counts if count >= 1)


def latency_curves(crew: Crew, plan: Plan) -> list[LatencyCurve]:
    """Of the best cluster of each family, the best few families."""
    question = _with_first_seed(plan.question)
    found = best_of_each(plan)[:MAX_CURVES]
    rates = crew.map("highest rates", question, Judge.most, [one.design for one in found])
    # The search's own rate may lie between the steps that Judge.most looks at.
    highest = [max(most, one.rate_per_s) for most, one in zip(rates, found, strict=True)]
    items = [
        (one.design, rate)
        for one, most in zip(found, highest, strict=True)
        for rate in (
            *(share * most for share in RATE_SHARES),
            most + question.resolution_per_s,
        )
    ]
    points = iter(crew.map("latencies by rate", question, _point, items))
    return [
        LatencyCurve(one.design, most, tuple(next(points) for _ in RATE_SHARES), next(points))
        for one, most in zip(found, highest, strict=True)
    ]


def best_of_each(plan: Plan) -> list[Found]:
    """The plan's best, tuned as it is, then the best of every other family that has one."""
    own = plan.best.design.family.name
    others = [answer.best for answer in plan.answers if answer.family.name != own]
    return [plan.best, *(one for one in others if one is not None)]


def _point(judge: Judge, item: tuple[Design, float]) -> Point:
    design, rate_per_s = item
    return Point(rate_per_s, judge.outcome(design, rate_per_s, judge.question.seeds[0]))


def _with_first_seed(question: Question) -> Question:
    return replace(question, seeds=question.seeds[:1])
