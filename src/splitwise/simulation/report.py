"""One HTML file that shows a simulation: SLOs, latencies, plots, machines. Nothing is fetched.

``write_html`` builds the tables from the summary and the plots from the result
(``report_plots``, which needs matplotlib), and sets them into one page.
"""

from dataclasses import fields
from html import escape
from pathlib import Path

from splitwise.observe.page import figures, require_matplotlib, table
from splitwise.observe.page import page as whole_page
from splitwise.simulation.result import Result
from splitwise.simulation.summary import Distribution, Summary


def write_html(result: Result, summary: Summary, path: Path, title: str) -> None:
    """Write the report to ``path``; raises ReportError when matplotlib is missing."""
    path.write_text(page(result, summary, title), encoding="utf-8")


def page(result: Result, summary: Summary, title: str) -> str:
    """The report's HTML; ``title`` is plain text."""
    require_matplotlib()
    from splitwise.simulation.report_plots import all_plots

    return whole_page(
        title,
        f"{overview(summary)}"
        f"<h2>Service level objectives</h2>{slo_table(summary)}"
        f"<h2>Latencies and slowdowns</h2>{latency_table(summary)}"
        f"<h2>Over time and over requests</h2>{figures(all_plots(result))}"
        f"<h2>Machines</h2>{group_table(summary)}",
    )


def overview(summary: Summary) -> str:
    """Counts and rates in two sentences."""
    counts, rates = summary.counts, summary.throughput
    rejected = counts.rejected_too_large + counts.rejected_no_machine
    return (
        f"<p>{counts.arrived} requests: {counts.finished} finished, {rejected} rejected "
        f"({counts.rejected_too_large} too large, {counts.rejected_no_machine} without a "
        f"machine), {counts.running} still running after {summary.end_s:.1f} s of virtual time; "
        f"the first {summary.warmup_s:g} s are left out. "
        f"{rates.offered_requests_per_s:.2f} requests/s offered, {rates.requests_per_s:.2f} "
        f"served; {rates.prompt_tokens_per_s:.0f} prompt and {rates.output_tokens_per_s:.0f} "
        f"output tokens/s; {summary.energy_joules / 3.6e6:.2f} kWh.</p>"
    )


def slo_table(summary: Summary) -> str:
    """Every SLO: limit, what was reached, verdict."""
    head = ("SLO", "limit", "value", "")
    rows = []
    for check in summary.slos:
        verdict = "met" if check.is_met else "missed"
        rows.append((*check.cells, f'<span class="{verdict}">{verdict}</span>'))
    return table(head, rows)


def latency_table(summary: Summary) -> str:
    """Milliseconds, then slowdowns."""
    rows = []
    for field in fields(summary.latencies):
        name = field.name.removesuffix("_s").replace("_", " ")
        rows.append(_row(f"{name} (ms)", getattr(summary.latencies, field.name), 1000, 1))
    for field in fields(summary.slowdowns):
        name = f"{field.name} slowdown (×)"
        rows.append(_row(name, getattr(summary.slowdowns, field.name), 1, 3))
    return table(("", "requests", "mean", "P50", "P90", "P99", "max"), rows)


def _row(name: str, values: Distribution, scale: float, digits: int) -> tuple[str, ...]:
    numbers = (values.mean, values.p50, values.p90, values.p99, values.max)
    cells = (f"{number * scale:.{digits}f}" if values.count else "–" for number in numbers)
    return (name, str(values.count), *cells)


def group_table(summary: Summary) -> str:
    """Machines by home pool and kind."""
    head = (
        *("Pool, kind", "machines", "busy", "prompt", "decode", "mixed", "watts each", "kWh"),
        *("prompt tokens", "decoded tokens", "role changes", "peak KV"),
    )
    rows = []
    for group in summary.groups:
        shares = (group.busy_share, group.prompt_share, group.decode_share, group.mixed_share)
        rows.append(
            (
                escape(f"{group.pool}, {group.kind}"),
                str(group.machines),
                *(f"{share:.1%}" for share in shares),
                f"{group.mean_watts:.0f}",
                f"{group.energy_joules / 3.6e6:.3f}",
                str(group.prompt_tokens),
                str(group.decoded_tokens),
                str(group.role_changes),
                f"{group.peak_kv_share:.1%}",
            )
        )
    return table(head, rows)
