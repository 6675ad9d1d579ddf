"""One HTML file that shows a plan: the answer, the alternatives, and why. Nothing is fetched.

1. ``write_html`` has more simulations run for the plots (``curves``), where the plan's were.
2. ``page`` sets tables (``report_tables``) and plots (``report_plots``) into one page.
"""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from splitwise.observe.page import figures, require_matplotlib, table
from splitwise.observe.page import page as whole_page
from splitwise.planning.curves import LatencyCurve, Neighbourhood, latency_curves, neighbourhood
from splitwise.planning.plan import Plan
from splitwise.planning.question import Question
from splitwise.planning.report_tables import Table, family_table, front_table, sensitivity_table
from splitwise.planning.report_terminal import headline, left_out
from splitwise.planning.workers import Crew
from splitwise.simulation.slowdown import SloCheck

_LIMITS: Final = (
    ("dollars_per_hour", "dollars an hour"),
    ("watts", "provisioned watts"),
    ("machines", "machines"),
)


def write_html(plan: Plan, crew: Crew, path: Path, title: str, commands: tuple[str, str]) -> None:
    """Write the report to ``path``; ``commands`` simulate and serve the best cluster.

    Raises:
        ReportError: matplotlib is missing.
    """
    require_matplotlib()
    around = neighbourhood(crew, plan.question, plan.best.design)
    curves = latency_curves(crew, plan)
    path.write_text(page(plan, around, curves, title, commands), encoding="utf-8")


def page(
    plan: Plan,
    around: Neighbourhood,
    curves: Sequence[LatencyCurve],
    title: str,
    commands: tuple[str, str],
) -> str:
    """The report's HTML; ``title`` and ``commands`` are plain text."""
    require_matplotlib()
    from splitwise.planning.report_plots import latency_rows, pareto, split_map, what_if

    parts = [
        paragraphs(headline(plan)),
        _section("What was asked", asked(plan.question)),
        _section("Try it, then run it", f"<pre>{escape(chr(10).join(commands))}</pre>"),
        _listing(family_table(plan)),
        _section(
            "Throughput against machines", figures([split_map(around, plan.question.rate_per_s)])
        ),
        _section(
            "Latency against rate",
            breaks_table(curves) + figures(latency_rows(curves), are_whole_rows=True),
        ),
        _listing(_numbered(front_table(plan)), figures([pareto(plan)])),
    ]
    if plan.sensitivity:
        parts.append(
            _listing(sensitivity_table(plan), figures([what_if(plan)], are_whole_rows=True))
        )
    parts.append(_section("What was looked at, and what was left out", search_table(plan)))
    return whole_page(title, "".join(parts))


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}"


def _listing(shown: Table, more: str = "") -> str:
    """A section of a table, and more HTML below it."""
    rows = [[escape(cell) for cell in row] for row in shown.rows]
    return _section(shown.title, table(shown.head, rows, shown.texts) + more)


def _numbered(shown: Table) -> Table:
    """With the numbers that the plot has."""
    rows = tuple((str(number), *row) for number, row in enumerate(shown.rows, 1))
    return Table(shown.title, ("", *shown.head), rows, shown.texts + 1)


def paragraphs(lines: Sequence[str]) -> str:
    """The first line stands out."""
    first, *others = (escape(line) for line in lines)
    return f"<p><strong>{first}</strong><br>{'<br>'.join(others)}</p>"


def asked(question: Question) -> str:
    """The load, the targets and the limits in a sentence each, then the machines on offer."""
    demand = question.demand
    rate = "as much as possible"
    if question.rate_per_s is not None:
        rate = f"{question.rate_per_s:g} requests/s"
    limits = [
        f"at most {getattr(question.limits, name):,.10g} {unit}"
        for name, unit in _LIMITS
        if math.isfinite(getattr(question.limits, name))
    ]
    lines = [
        f"Load: {rate} of {demand.source}, arrivals {demand.arrivals or 'as usual for it'}; "
        f"objective: {question.objective}.",
        f"Service level objectives (x: times what the request takes alone on the reference "
        f"machine): {', '.join(str(slo) for slo in question.slos)}.",
        f"Limits: {', '.join(limits) or 'none but the stock'}.",
        f"Seeds {', '.join(str(seed) for seed in question.seeds)}; rates in steps of "
        f"{question.resolution_per_s:g}/s.",
    ]
    offers = [
        (
            escape(offer.name),
            f"{offer.times.dollars_per_hour:,.2f}",
            f"{offer.times.provisioned_watts:,.0f}",
            str(offer.stock),
        )
        for offer in question.offers
    ]
    text = "<br>".join(escape(line) for line in lines)
    return f"<p>{text}</p>{table(('machine on offer', '$/h', 'W', 'stock'), offers)}"


def breaks_table(curves: Sequence[LatencyCurve]) -> str:
    """What each cluster misses first as the rate rises, with the first seed."""
    rows = []
    for curve in curves:
        missed = ", ".join(missed_by(check) for check in curve.beyond.outcome.missed)
        rows.append(
            (
                escape(curve.design.name),
                escape(missed or "nothing, but its prompts take all time there is"),
                f"{curve.beyond.rate_per_s:g}",
                f"{curve.highest_per_s:g}",
            )
        )
    head = ("cluster", "what breaks first", "at req/s", "carries req/s")
    return table(head, rows, texts=2)


def missed_by(check: SloCheck) -> str:
    """Such as ``TBT P50 1.27x (limit 1.25x)``."""
    name = f"{check.metric.upper()} P{check.percentile}"
    if check.unit == "x":
        return f"{name} {check.value:.5g}x (limit {check.limit:g}x)"
    return f"{name} {check.value * 1000:.4g} ms (limit {check.limit * 1000:g} ms)"


def search_table(plan: Plan) -> str:
    """What the search did in every family."""
    rows = []
    for answer in plan.answers:
        why = "; ".join(f"{count} {reason}" for reason, count in sorted(answer.left_out.items()))
        numbers = (max(answer.splits, 1), answer.tried, answer.simulated)
        rows.append(
            (escape(answer.family.name), escape(why or "-"), *(str(one) for one in numbers))
        )
    head = ("machines", "left out", "splits", "looked at", "new simulations")
    return f"<p>{escape(left_out(plan))}</p>{table(head, rows, texts=2)}"
