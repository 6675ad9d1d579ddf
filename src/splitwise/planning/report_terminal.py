"""A plan in the terminal: the answer, how sure it is, the alternatives, and what to run."""

import shlex

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as RichTable

from splitwise.planning.design import Design
from splitwise.planning.plan import Plan
from splitwise.planning.question import Question
from splitwise.planning.report_tables import Table, family_table, front_table, sensitivity_table
from splitwise.scheduling.policies.policy import DEFAULT
from splitwise.simulation.slowdown import PAPER_SLOS


def print_plan(plan: Plan, commands: tuple[str, str], console: Console | None = None) -> None:
    """Print all but the plots; ``commands`` simulate and serve the best cluster."""
    to = console or Console()
    to.print("\n".join(headline(plan)), highlight=False, soft_wrap=True)
    for table in (family_table(plan), front_table(plan), sensitivity_table(plan)):
        if table.rows:
            to.print(in_terminal(table))
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
    policy = plan.question.options.policy
    if policy != DEFAULT:
        lines.append(f"policy: {policy.name}, in every cluster that was compared")
    if design.queue_threshold_tokens is not None:
        lines.append(f"prompt queue threshold: {design.queue_threshold_tokens} tokens")
    return lines


def money(design: Design) -> str:
    """Dollars an hour."""
    return f"${design.dollars_per_hour:,.0f}/h"


def kilowatts(design: Design) -> str:
    """Provisioned."""
    return f"{design.watts / 1000:,.1f} kW"


def in_terminal(table: Table) -> RichTable:
    """Close together: a cluster's name has to fit into 80 columns."""
    shown = RichTable(title=table.title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for number, column in enumerate(table.head):
        shown.add_column(column, justify="left" if number < table.texts else "right")
    for row in table.rows:
        shown.add_row(*row)
    return shown


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
        f"new simulations; the rest lie away from the best of a family. Left out: {why or 'none'}."
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
    rest_of_both = [] if threshold is None else [f"--queue-threshold {threshold}"]
    policy = plan.question.options.policy
    rest_of_both += [] if policy == DEFAULT else [f"--policy {shlex.quote(policy.source)}"]
    roles = [f"--{pool.name.lower()} {count}" for pool, count, _ in parts]
    load = load_options(plan.question, rate)
    simulate = ["splitwise simulate", shlex.quote(source), *load, *groups, *rest]
    serve = ["splitwise serve MODEL", *roles]
    return " ".join([*simulate, *rest_of_both]), " ".join([*serve, *rest_of_both])


def load_options(question: Question, rate_per_s: float) -> list[str]:
    """The load with the first seed, and what it has to meet."""
    demand = question.demand
    is_usual = question.slos == PAPER_SLOS
    slos = [] if is_usual else [f"--slo {shlex.quote(str(slo))}" for slo in question.slos]
    arrivals = [] if demand.arrivals is None else [f"--arrivals {shlex.quote(demand.arrivals)}"]
    return [
        f"--rate {exact(rate_per_s)}",
        f"--duration {exact(demand.duration_at(rate_per_s))}",
        f"--warmup {exact(demand.warm_up_at(rate_per_s))}",
        f"--seed {question.seeds[0]}",
        *arrivals,
        *slos,
    ]


def exact(number: float) -> str:
    """All digits, but no more than it takes."""
    return repr(float(number)).removesuffix(".0")
