"""Why there is no answer: which constraint binds, and by how much it would have to give.

1. ``check_targets``, before the search: an SLO that a lone request misses on all kinds, and on all
   pairs of them, cannot be met by any number of machines.
2. ``explain``, after a search that found nothing: what the limits carry at most, and for each limit
   what it would have to be with the others as they are.
"""

import math
from dataclasses import replace
from typing import Final

from splitwise.planning.demand import Demand
from splitwise.planning.design import Design, Family, families
from splitwise.planning.errors import Infeasible
from splitwise.planning.outcome import Outcome
from splitwise.planning.question import Limits, Objective, Question
from splitwise.planning.search import Found, best_of, search_family
from splitwise.planning.trial import Judge
from splitwise.planning.workers import Crew

LONE_MACHINES: Final = 4
LONE_RATE_PER_S: Final = 0.02
"""So few requests a second on four machines a pool that hardly two meet."""
MORE_STOCK: Final = 4
CURRENCY: Final = {
    "dollars_per_hour": (Objective.COST, "dollars an hour"),
    "watts": (Objective.POWER, "watts"),
    "machines": (Objective.MACHINES, "machines"),
}


def check_targets(crew: Crew, question: Question) -> None:
    """Raise Infeasible if an SLO is missed even by requests that have machines to themselves."""
    among = families(question.offers)
    alone = crew.map("targets", lone(question), outcome_alone, among)
    for number, slo in enumerate(question.slos):
        family, best = min(
            ((family, outcome.slos[number]) for family, outcome in zip(among, alone, strict=True)),
            key=lambda pair: pair[1].value,
        )
        if not best.is_met:
            reached = f"{best.value:.3g}x" if slo.unit == "x" else f"{best.value * 1000:.4g}ms"
            raise Infeasible(
                f"slo {slo}: a request that has a machine to itself reaches {reached} on "
                f"{family.name}, the fastest on offer; allow more than that, or offer faster "
                "machines"
            )


def lone(question: Question) -> Question:
    """The same with requests that come far apart, and enough of them."""
    return replace(question, demand=Demand(question.demand.source, "poisson"))


def outcome_alone(judge: Judge, family: Family) -> Outcome:
    """What requests experience that hardly ever meet."""
    design = Design(family, (LONE_MACHINES,) * len(family.pools))
    return judge.outcome(design, LONE_RATE_PER_S, judge.question.seeds[0])


def explain(crew: Crew, question: Question) -> Infeasible:
    """The error for a question without an answer."""
    lines = [f"no cluster on offer carries {_load(question)} within its targets and limits"]
    asked = question
    if question.rate_per_s is None:
        least = question.resolution_per_s
        lines.append(f"not even {least:g}/s, the smallest rate looked at")
        asked = replace(question, objective=Objective.COST, rate_per_s=least)
    else:
        lines.append(_most(crew, question))
    for field, (objective, unit) in CURRENCY.items():
        allowed = getattr(question.limits, field)
        if math.isfinite(allowed):
            lines.append(_relaxed(crew, asked, field, objective, unit, allowed))
    lines.append(_more_stock(crew, asked))
    return Infeasible("; ".join(lines))


def _load(question: Question) -> str:
    return "any load" if question.rate_per_s is None else f"{question.rate_per_s:g} requests/s"


def _most(crew: Crew, question: Question) -> str:
    asked = replace(question, objective=Objective.THROUGHPUT, rate_per_s=None)
    most = _best(crew, asked, "most rate")
    if most is None:
        return "not even the smallest rate looked at is carried"
    return f"the most is {most.rate_per_s:g}/s, by {most.design.name}"


def _relaxed(
    crew: Crew, question: Question, field: str, objective: Objective, unit: str, allowed: float
) -> str:
    """What a limit would have to be, the others being kept."""
    limits: Limits = replace(question.limits, **{field: math.inf})
    found = _best(crew, replace(question, limits=limits, objective=objective), f"least {field}")
    if found is None:
        return f"{field}: {allowed:g} allowed; more of it alone would not help"
    needed = getattr(found.design, field)
    return (
        f"{field}: {allowed:g} allowed, {needed:.10g} {unit} needed (+{needed / allowed - 1:.0%}), "
        f"by {found.design.name}"
    )


def _more_stock(crew: Crew, question: Question) -> str:
    offers = tuple(replace(one, stock=one.stock * MORE_STOCK) for one in question.offers)
    asked = replace(question, offers=offers, objective=Objective.MACHINES)
    found = _best(crew, asked, "larger stock")
    if found is None:
        return f"stock: {MORE_STOCK} times as many machines of each kind would not help"
    return f"stock: {found.design.name} would do"


def _best(crew: Crew, question: Question, what: str) -> Found | None:
    answers = crew.map(what, question, search_family, families(question.offers))
    return best_of(question.objective, answers)
