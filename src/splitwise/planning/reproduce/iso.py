"""Same power, same cost, same throughput: the paper's six designs against each other.

For each: what the published counts carry, and what the best counts carry under the same limit; or
how little does for a rate.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from splitwise.planning.design import Design
from splitwise.planning.question import Limits, Objective
from splitwise.planning.report_tables import divided
from splitwise.planning.reproduce.published import (
    BASELINES,
    EXAMPLE,
    LEAST_COST,
    LEAST_POWER,
    SAME_COST,
    SAME_POWER,
    Counts,
)
from splitwise.planning.reproduce.section import Figure, Section
from splitwise.planning.reproduce.setting import Setting
from splitwise.planning.search import Found, search_family
from splitwise.planning.trial import Judge
from splitwise.planning.workers import Crew

RATE_PER_S: Final = 70.0
"""Of the figures at the same throughput. The paper does not say its own beside the counts."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A design with the published counts, the best counts, and what both carry with every seed."""

    published: Design
    rate_per_s: float
    best: Found | None
    best_rate_per_s: float


Pairs = dict[str, Pair]


def same_power(crew: Crew, setting: Setting) -> list[Section]:
    """As much power as the published counts or 70 A100 have, whichever is more."""
    counts = SAME_POWER[setting.workload]
    pairs = compare(crew, setting, counts, lambda watts, dollars: Limits(watts=watts))
    return [section("Same power", setting, pairs)]


def same_cost(crew: Crew, setting: Setting) -> list[Section]:
    """As many dollars as the published counts or 86 A100 take, whichever is more."""
    counts = SAME_COST[setting.workload]
    pairs = compare(crew, setting, counts, lambda watts, dollars: Limits(dollars_per_hour=dollars))
    return [section("Same cost", setting, pairs)]


def compare(
    crew: Crew, setting: Setting, counts: Counts, limits: Callable[[float, float], Limits]
) -> Pairs:
    """Every design: published counts and a free search under the same limits."""
    designs = {name: setting.design(name, each) for name, each in counts.items()}
    budget = designs["A100"]
    asked = [
        (
            setting.question(
                limits=limits(
                    max(one.watts, budget.watts),
                    max(one.dollars_per_hour, budget.dollars_per_hour),
                )
            ),
            one.family,
        )
        for one in designs.values()
    ]
    label = f"{setting.workload}, {setting.rules[0]}"
    answers = crew.map_each(f"best counts, {label}", search_family, asked)
    best = [answer.best for answer in answers]
    asked_rates = list(designs.values()) + [one.design for one in best if one is not None]
    rates = iter(crew.map(f"rates, {label}", setting.question(), Judge.most_by_seed, asked_rates))
    published = [sure(next(rates)) for _ in designs]
    # Bisection may stop at a rate that is missed by chance; the search knows a higher one to hold.
    found = [0.0 if one is None else max(sure(next(rates)), one.rate_per_s) for one in best]
    rows = zip(designs.items(), published, best, found, strict=True)
    return {name: Pair(one, rate, other, high) for (name, one), rate, other, high in rows}


def sure(rates: list[float]) -> float:
    """Carried with every seed, which is also what the search looks for."""
    return min(rates)


def section(title: str, setting: Setting, pairs: Pairs) -> Section:
    """Rates of all designs; says where free counts do not reach the published ones."""
    figures = []
    for name, pair in pairs.items():
        label = f"{name}, {pair.published.name}"
        figures.append(Figure(label, pair.rate_per_s, None, "1/s"))
        if pair.best is not None:
            label = f"{name}, best: {pair.best.design.name}"
            figures.append(Figure(label, pair.best_rate_per_s, None, "1/s"))
    lower = [name for name, pair in pairs.items() if pair.best_rate_per_s < pair.rate_per_s]
    remark = (
        f"The search found less than the published counts carry for {', '.join(lower)}."
        if lower
        else "For every design the search found counts at least as good as the published ones."
    )
    return Section(f"{title}, {setting.workload}", setting.describe(), tuple(figures), (remark,))


def ratio(pairs: Pairs, name: str, other: str) -> float:
    """Of the published counts' rates."""
    return divided(pairs[name].rate_per_s, pairs[other].rate_per_s)


def best_ratio(pairs: Pairs, name: str, other: str) -> float:
    """Of the best counts' rates."""
    return divided(pairs[name].best_rate_per_s, pairs[other].best_rate_per_s)


def same_throughput(crew: Crew, setting: Setting) -> list[Section]:
    """The least power, and the least cost, that carry ``RATE_PER_S``."""
    return [
        least(crew, setting, Objective.POWER, LEAST_POWER),
        least(crew, setting, Objective.COST, LEAST_COST),
    ]


def least(crew: Crew, setting: Setting, objective: Objective, counts: Counts) -> Section:
    """Each design's cheapest counts in watts or dollars, beside the published ones."""
    designs = {name: setting.design(name, each) for name, each in counts.items()}
    question = setting.question(objective, RATE_PER_S)
    families = [one.family for one in designs.values()]
    what = f"least {objective}, {setting.rules[0]}"
    answers = crew.map(what, question, search_family, families)
    rates = crew.map(what, setting.question(), Judge.most_by_seed, list(designs.values()))
    figures = []
    for (name, design), answer, each in zip(designs.items(), answers, rates, strict=True):
        label = f"{name}, {design.name}: highest rate"
        figures.append(Figure(label, sure(each), RATE_PER_S, "1/s"))
        if answer.best is None:
            continue
        best = answer.best.design
        ours = best.watts / 1000 if objective is Objective.POWER else best.dollars_per_hour
        theirs = design.watts / 1000 if objective is Objective.POWER else design.dollars_per_hour
        unit = "kW" if objective is Objective.POWER else "$/h"
        figures.append(Figure(f"{name}, best: {best.name}", ours, theirs, unit))
    remark = (
        f"Published counts are compared at {RATE_PER_S:g} requests/s, which is this report's "
        "choice; where their highest rate is lower they do not carry it."
    )
    title = f"Same throughput, least {objective}, {setting.workload}"
    return Section(title, setting.describe(), tuple(figures), (remark,))


def example(crew: Crew, setting: Setting) -> Section:
    """HH for coding at 70 requests/s: the cheapest counts beside the published 27P 3T."""
    published = setting.design("HH", EXAMPLE)
    question = setting.question(Objective.COST, RATE_PER_S)
    (answer,) = crew.map("example", question, search_family, [published.family])
    best = answer.best
    asked = [published] if best is None else [published, best.design]
    rates = crew.map("example", setting.question(), Judge.most_by_seed, asked)
    figures = [
        Figure(f"{one.name}: highest rate", sure(each), None, "1/s")
        for one, each in zip(asked, rates, strict=True)
    ]
    if best is not None:
        cost = published.dollars_per_hour
        figures.append(Figure("cheapest cluster", best.design.dollars_per_hour, cost, "$/h"))
    kinds = BASELINES[1]
    title = f"Example of the search: {kinds} for both phases, coding, {RATE_PER_S:g} requests/s"
    return Section(title, setting.describe(), tuple(figures))
