"""A plan in the terminal: the answer, how sure it is, the alternatives, and what to run."""

import shlex

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from splitwise.planning.design import Design
from splitwise.planning.plan import Plan
from splitwise.planning.question import Objective, Question
from splitwise.planning.search import FamilyAnswer


def print_plan(plan: Plan, commands: tuple[str, str], console: Console | None = None) -> None:
    """Print all but the plots; ``commands`` simulate and serve the best cluster."""
    to = console or Console()
    to.print("\n".join(headline(plan)), highlight=False, soft_wrap=True)
    to.print(family_table(plan))
    to.print(front_table(plan))
    if plan.sensitivity:
        to.print(sensitivity_table(plan))
    to.print(left_out(plan), highlight=False, soft_wrap=True)
    to.print("Try it, then run it:", *(f"  {one}" for one in commands), sep="\n", soft_wrap=True)


def headline(plan: Plan) -> list[str]:
    """The answer in sentences."""
    design, most, rate = plan.best.design, plan.most, plan.question.rate_per_s
    machines = f"{design.machines} machines, {money(design)}, {kilowatts(design)} provisioned"
    lines = [f"{design.name}: {machines}"]
    sure = f"{most.mean:.1f}/s on average of {len(most.by_seed)} seeds"
    if len(most.by_seed) > 1:
        sure += f" (95 %: {most.low:.1f} to {most.high:.1f})"
    lines.append(f"carries {min(most.by_seed):g} requests/s with every seed; {sure}")
    if rate is not None:
        lines.append(f"asked for: {rate:g}/s, {plan.best.joules_per_token:.2f} J a token there")
    missed = ", ".join(plan.breaks.missed) or "nothing"
    lines.append(f"first missed at {plan.breaks.rate_per_s:g}/s: {missed}")
    if design.queue_threshold_tokens is not None:
        lines.append(f"prompt queue threshold: {design.queue_threshold_tokens} tokens")
    return lines


def money(design: Design) -> str:
    """Dollars an hour."""
    return f"${design.dollars_per_hour:,.0f}/h"


def kilowatts(design: Design) -> str:
    """Provisioned."""
    return f"{design.watts / 1000:,.1f} kW"


def family_table(plan: Plan) -> Table:
    """The best of every family, best first."""
    table = Table(title="Best of every choice of kinds", title_justify="left", box=SIMPLE)
    for column in ("cluster", "requests/s", "$/h", "kW", "J/token", "against best"):
        table.add_column(column, justify="left" if column == "cluster" else "right")
    for answer in plan.answers:
        table.add_row(*family_row(plan, answer))
    return table


def family_row(plan: Plan, answer: FamilyAnswer) -> tuple[str, ...]:
    """Name and figures; dashes where nothing was found."""
    best = answer.best
    if best is None:
        return (answer.family.name, *["-"] * 5)
    design = best.design
    return (
        design.name,
        f"{best.rate_per_s:g}",
        f"{design.dollars_per_hour:,.0f}",
        f"{design.watts / 1000:,.1f}",
        f"{best.joules_per_token:.2f}",
        f"{against(plan, answer):.2f}x",
    )


def against(plan: Plan, answer: FamilyAnswer) -> float:
    """The objective's figure against the best's: a rate, or what has to be spent."""
    one, other = answer.best, plan.best
    if one is None:
        return float("nan")
    match plan.question.objective:
        case Objective.THROUGHPUT:
            return one.rate_per_s / other.rate_per_s
        case Objective.COST:
            return one.design.dollars_per_hour / other.design.dollars_per_hour
        case Objective.POWER:
            return one.design.watts / other.design.watts
        case Objective.MACHINES:
            return one.design.machines / other.design.machines
        case Objective.ENERGY:
            return one.joules_per_token / other.joules_per_token


def front_table(plan: Plan) -> Table:
    """Clusters that no other beats in cost, power and rate together."""
    title = "Pareto front of cost, power and rate, of all that was found"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for column in ("cluster", "requests/s", "$/h", "kW"):
        table.add_column(column, justify="left" if column == "cluster" else "right")
    for one in plan.front:
        dollars, watts = one.design.dollars_per_hour, one.design.watts
        table.add_row(
            one.design.name, f"{one.rate_per_s:g}", f"{dollars:,.0f}", f"{watts / 1000:,.1f}"
        )
    return table


def sensitivity_table(plan: Plan) -> Table:
    """What if."""
    table = Table(title="What if", title_justify="left", box=SIMPLE)
    for column in ("change", "cluster", "requests/s", "$/h"):
        table.add_column(column, justify="left" if column in ("change", "cluster") else "right")
    for case in plan.sensitivity:
        table.add_row(
            case.change,
            case.design or "none",
            f"{case.rate_per_s:g}",
            f"{case.dollars_per_hour:,.0f}",
        )
    return table


def left_out(plan: Plan) -> str:
    """What the search looked at, and what it did not and why."""
    splits = sum(max(answer.splits, 1) for answer in plan.answers)
    tried = sum(answer.tried for answer in plan.answers)
    reasons: dict[str, int] = {}
    for answer in plan.answers:
        for reason, count in answer.left_out.items():
            reasons[reason] = reasons.get(reason, 0) + count
    why = "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return (
        f"Looked at {tried} of {splits} splits in {len(plan.answers)} families, {plan.simulated} "
        f"simulations; the rest lie away from the best of a family. Left out: {why or 'none'}."
    )


def commands_of(plan: Plan, source: str, options: dict[str, str]) -> tuple[str, str]:
    """The commands that simulate and serve the best cluster; ``options`` of the simulation.

    The simulation is one that the search ran: at the same rate, with the same luck.
    """
    design, rate = plan.best.design, plan.best.rate_per_s
    parts = list(zip(design.family.pools, design.counts, design.family.offers, strict=True))
    groups = [f"--{pool.name.lower()} {count}x{offer.name}" for pool, count, offer in parts]
    rest = [f"--{name} {shlex.quote(value)}" for name, value in options.items()]
    threshold = design.queue_threshold_tokens
    limit = [] if threshold is None else [f"--queue-threshold {threshold}"]
    roles = [f"--{pool.name.lower()} {count}" for pool, count, _ in parts]
    load = load_options(plan.question, rate)
    simulate = ["splitwise simulate", shlex.quote(source), *load, *groups, *rest]
    serve = ["splitwise serve MODEL", *roles]
    return " ".join([*simulate, *limit]), " ".join([*serve, *limit])


def load_options(question: Question, rate_per_s: float) -> list[str]:
    """The load with the first seed."""
    demand = question.demand
    arrivals = [] if demand.arrivals is None else [f"--arrivals {shlex.quote(demand.arrivals)}"]
    return [
        f"--rate {exact(rate_per_s)}",
        f"--duration {exact(demand.duration_at(rate_per_s))}",
        f"--warmup {exact(demand.warm_up_at(rate_per_s))}",
        f"--seed {question.seeds[0]}",
        *arrivals,
    ]


def exact(number: float) -> str:
    """All digits, but no more than it takes."""
    return repr(float(number)).removesuffix(".0")
