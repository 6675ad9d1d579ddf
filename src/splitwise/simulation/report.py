"""One HTML file that shows a simulation: SLOs, latencies, plots, machines. Nothing is fetched.

``write_html`` builds the tables from the summary and the plots from the result
(``report_plots``, which needs matplotlib), and sets them into one page.
"""

from collections.abc import Sequence
from dataclasses import fields
from html import escape
from pathlib import Path
from typing import Final

from splitwise.simulation.result import Result
from splitwise.simulation.summary import Distribution, Summary

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto;
       padding: 0 1rem; color: #1f2937; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid #e5e7eb; }
th:first-child, td:first-child { text-align: left; }
.met { color: #15803d; } .missed { color: #b91c1c; font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .85rem; color: #4b5563; }
svg { width: 100%; height: auto; } .wide { overflow-x: auto; }
"""


class ReportError(ValueError):
    """The report cannot be made."""


def write_html(result: Result, summary: Summary, path: Path, title: str) -> None:
    """Write the report to ``path``; raises ReportError when matplotlib is missing."""
    path.write_text(page(result, summary, title), encoding="utf-8")


def page(result: Result, summary: Summary, title: str) -> str:
    """The report's HTML; ``title`` is plain text."""
    try:
        from splitwise.simulation.report_plots import all_plots
    except ImportError as missing:
        raise ReportError(
            "the report needs matplotlib; pip install 'splitwise-llm[report]'"
        ) from missing
    figures = "".join(
        f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, svg in all_plots(result)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1>{overview(summary)}"
        f"<h2>Service level objectives</h2>{slo_table(summary)}"
        f"<h2>Latencies and slowdowns</h2>{latency_table(summary)}"
        f'<h2>Over time and over requests</h2><div class="plots">{figures}</div>'
        f"<h2>Machines</h2>{group_table(summary)}</body></html>"
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
    head = ("Slowdown", "limit", "value", "")
    rows = []
    for check in summary.slos:
        verdict = "met" if check.is_met else "missed"
        rows.append(
            (
                f"{check.metric.upper()} P{check.percentile}",
                f"{check.limit:g}",
                f"{check.value:.3f}",
                f'<span class="{verdict}">{verdict}</span>',
            )
        )
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


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of cells that are HTML already."""
    header = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{header}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
