"""A summary as tables in the terminal."""

from dataclasses import fields

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from splitwise.simulation.summary import Distribution, Summary

_PERCENTILE_COLUMNS = ("requests", "mean", "P50", "P90", "P99", "max")


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """Print counts, latencies, slowdowns, SLOs and machines; to standard output by default."""
    to = console or Console()
    counts, rates = summary.counts, summary.throughput
    rejected = counts.rejected_too_large + counts.rejected_no_machine
    to.print(
        f"{counts.arrived} requests: {counts.finished} finished, {rejected} rejected "
        f"({counts.rejected_too_large} too large, {counts.rejected_no_machine} without a machine), "
        f"{counts.running} still running after {summary.end_s:.1f} s"
    )
    to.print(
        f"{rates.offered_requests_per_s:.2f} requests/s offered, {rates.requests_per_s:.2f} served;"
        f" {rates.prompt_tokens_per_s:.0f} prompt and {rates.output_tokens_per_s:.0f} output "
        f"tokens/s; {summary.energy_joules / 3.6e6:.2f} kWh"
    )
    for table in (latency_table(summary), slo_table(summary), machine_table(summary)):
        to.print(table)


def latency_table(summary: Summary) -> Table:
    """Latencies in milliseconds, then slowdowns."""
    table = Table(title="Latencies (ms) and slowdowns (x)", title_justify="left", box=SIMPLE)
    table.add_column("")
    for column in _PERCENTILE_COLUMNS:
        table.add_column(column, justify="right")
    for field in fields(summary.latencies):
        name = field.name.removesuffix("_s").replace("_", " ")
        table.add_row(name, *_cells(getattr(summary.latencies, field.name), 1000, 1))
    table.add_section()
    for field in fields(summary.slowdowns):
        table.add_row(f"{field.name} x", *_cells(getattr(summary.slowdowns, field.name), 1, 3))
    return table


def _cells(values: Distribution, scale: float, digits: int) -> tuple[str, ...]:
    numbers = (values.mean, values.p50, values.p90, values.p99, values.max)
    if values.count == 0:
        return ("0", *("-" for _ in numbers))
    return (str(values.count), *(f"{number * scale:.{digits}f}" for number in numbers))


def slo_table(summary: Summary) -> Table:
    """Every SLO, what was reached, and whether it is met."""
    title = "SLOs: met" if summary.meets_slos else "SLOs: missed"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for column in ("SLO", "limit", "value", ""):
        table.add_column(column, justify="left" if column == "SLO" else "right")
    for check in summary.slos:
        verdict = "[green]met[/]" if check.is_met else "[red]missed[/]"
        table.add_row(*check.cells, verdict)
    return table


def machine_table(summary: Summary) -> Table:
    """Groups of machines: what they did with their time, and what they drew."""
    table = Table(title="Machines", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("pool, kind")
    for column in ("count", "busy", "prompt", "decode", "mixed", "W each", "roles", "peak KV"):
        table.add_column(column, justify="right")
    for group in summary.groups:
        shares = (group.busy_share, group.prompt_share, group.decode_share, group.mixed_share)
        table.add_row(
            f"{group.pool}, {group.kind}",
            str(group.machines),
            *(f"{share:.1%}" for share in shares),
            f"{group.mean_watts:.0f}",
            str(group.role_changes),
            f"{group.peak_kv_share:.1%}",
        )
    return table
