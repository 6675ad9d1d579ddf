"""``splitwise workload``: look at a workload, or turn it into a file."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import msgspec
import numpy as np
import typer
from msgspec import Meta
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from splitwise.cli.errors import fail
from splitwise.cli.settings import with_settings
from splitwise.workload import (
    Requests,
    WorkloadError,
    WorkloadSummary,
    open_source,
    summarise,
    write_requests,
)

app = typer.Typer(help="Look at workloads, and turn them into files.", no_args_is_help=True)

BARS: Final = "▁▂▃▄▅▆▇█"
COLUMNS: Final = 40

Source = Annotated[
    str, typer.Argument(help="conversation, coding, or a CSV or JSONL file of requests.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


class Load(msgspec.Struct, frozen=True):
    """How a source becomes requests."""

    rate: Annotated[
        float | None,
        Meta(
            description="Requests a second; default 10 for a built-in one, a file's own otherwise."
        ),
    ] = None
    duration: Annotated[
        float | None,
        Meta(description="Seconds; default 600 for a built-in one, the whole file otherwise."),
    ] = None
    seed: Annotated[int, Meta(ge=0, description="Of the random numbers of what is drawn.")] = 0
    arrivals: Annotated[
        str | None,
        Meta(description="poisson, gamma:CV, diurnal:AMPLITUDE[:PERIOD], steps:0=RATE,..., replay"),
    ] = None

    def requests(self, source: str) -> Requests:
        return open_source(source, self.rate, self.duration, self.seed, self.arrivals)


@app.command()
@with_settings
def inspect(source: Source, load: Load, as_json: Json = False) -> None:
    """Show sizes, rate and burstiness of a workload."""
    try:
        requests = load.requests(source)
        summary = summarise(requests)
    except WorkloadError as error:
        fail(error)
    if as_json:
        typer.echo(json.dumps({"source": source, **asdict(summary)}, indent=2))
    else:
        _show(source, requests, summary)


@app.command()
@with_settings
def convert(
    source: Source,
    out: Annotated[Path, typer.Argument(help="File to write; .csv or .jsonl.")],
    load: Load,
    as_json: Json = False,
) -> None:
    """Write a workload as arrival_s, prompt_tokens, output_tokens."""
    try:
        requests = load.requests(source)
        write_requests(requests, out)
    except WorkloadError as error:
        fail(error)
    if as_json:
        typer.echo(json.dumps({"source": source, "out": str(out), "requests": len(requests)}))
    else:
        typer.echo(f"{out}: {len(requests):,} requests")


def sparkline(counts: NDArray[np.int64]) -> str:
    """One bar a count, the tallest for the largest; a blank for none at all."""
    highest = max(1, int(counts.max()))
    return "".join(
        BARS[round(count / highest * (len(BARS) - 1))] if count else " "
        for count in counts.tolist()
    )


def _show(source: str, requests: Requests, summary: WorkloadSummary) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{source}: {summary.requests:,} requests in {summary.duration_s:,.1f} s, "
        f"{_figure(summary.rate_per_s)} a second",
        markup=False,
    )
    console.print(
        f"interarrival CV {_figure(summary.interarrival_cv)} (1: Poisson), "
        f"rank correlation of sizes {_figure(summary.rank_correlation)}"
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("tokens", "mean", "min", "P50", "P90", "P99", "max"):
        table.add_column(heading, justify="left" if heading == "tokens" else "right")
    for kind, tokens in (("prompt", summary.prompt_tokens), ("output", summary.output_tokens)):
        figures = (tokens.mean, tokens.minimum, tokens.p50, tokens.p90, tokens.p99, tokens.maximum)
        table.add_row(kind, *(f"{figure:,.0f}" for figure in figures))
    console.print(table)
    for kind, counts in (("prompt", requests.prompt_tokens), ("output", requests.output_tokens)):
        low, high, line = _log_histogram(counts)
        console.print(f"{kind:8}{low:>7,} {line} {high:,} tokens, log scale", markup=False)
    arrivals, _ = np.histogram(requests.arrival_s, COLUMNS)
    start, end = requests.arrival_s[[0, -1]].tolist()
    console.print(f"{'arrivals':8}{start:>7,.0f} {sparkline(arrivals)} {end:,.0f} s", markup=False)


def _log_histogram(tokens: NDArray[np.int64]) -> tuple[int, int, str]:
    low, high = int(tokens.min()), int(tokens.max())
    counts, _ = np.histogram(np.log(tokens), COLUMNS)
    return low, high, sparkline(counts)


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3g}"
