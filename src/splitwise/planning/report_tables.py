"""A plan's tables as plain text, for the terminal and for the page."""

from dataclasses import dataclass

from splitwise.planning.plan import Plan
from splitwise.planning.question import Objective
from splitwise.planning.search import FamilyAnswer, Found
from splitwise.planning.sensitivity import Case


@dataclass(frozen=True)
class Table:
    """Cells of text; the first ``texts`` columns hold no numbers."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int = 1


def family_table(plan: Plan) -> Table:
    """The best of every family, best first."""
    return Table(
        "Best of every choice of kinds",
        ("cluster", "req/s", "$/h", "kW", "J/token", "vs best"),
        tuple(_family_row(plan, answer) for answer in plan.answers),
    )


def _family_row(plan: Plan, answer: FamilyAnswer) -> tuple[str, ...]:
    """Name and figures; dashes where nothing was found."""
    best = answer.best
    if best is None:
        return (answer.family.name, *["-"] * 5)
    figures = (f"{best.joules_per_token:.2f}", f"{against(plan, best):.2f}x")
    return (*_front_row(best), *figures)


def against(plan: Plan, one: Found) -> float:
    """The objective's figure against the best's: a rate, or what has to be spent."""
    other = plan.best
    objective = plan.question.objective
    return divided(_figure(objective, one), _figure(objective, other))


def _figure(objective: Objective, found: Found) -> float:
    match objective:
        case Objective.THROUGHPUT:
            return found.rate_per_s
        case Objective.COST:
            return found.design.dollars_per_hour
        case Objective.POWER:
            return found.design.watts
        case Objective.MACHINES:
            return found.design.machines
        case Objective.ENERGY:
            return found.joules_per_token


def divided(one: float, other: float) -> float:
    """nan where there is nothing to divide by, as with machines that cost nothing."""
    return one / other if other else float("nan")


def front_table(plan: Plan) -> Table:
    """Clusters that no other beats in cost, power and rate together."""
    return Table(
        "Pareto front of cost, power and rate",
        ("cluster", "req/s", "$/h", "kW"),
        tuple(_front_row(one) for one in plan.front),
    )


def _front_row(one: Found) -> tuple[str, ...]:
    design = one.design
    watts, dollars = f"{design.watts / 1000:,.1f}", f"{design.dollars_per_hour:,.0f}"
    return (design.name, f"{one.rate_per_s:g}", dollars, watts)


def sensitivity_table(plan: Plan) -> Table:
    """What if."""
    rows = tuple(_case_row(case) for case in plan.sensitivity)
    return Table("What if", ("change", "cluster", "req/s", "$/h", "kW"), rows, texts=2)


def _case_row(case: Case) -> tuple[str, ...]:
    """Dashes where there is no cluster."""
    if case.design is None:
        return (case.change, "none", *["-"] * 3)
    watts, dollars = f"{case.watts / 1000:,.1f}", f"{case.dollars_per_hour:,.0f}"
    return (case.change, case.design, f"{case.rate_per_s:g}", dollars, watts)
