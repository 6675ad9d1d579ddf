"""``splitwise simulate``: what would this cluster do under this load?"""

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from splitwise.cli.errors import fail
from splitwise.cli.policy import PolicySource
from splitwise.hardware import load_profile
from splitwise.hardware.loading import PAPER_REFERENCE, usual_reference
from splitwise.scheduling.policies.policy import DEFAULT, load_policy
from splitwise.scheduling.pool import Pool
from splitwise.workload import Requests, open_source

if TYPE_CHECKING:  # the simulator brings numba along
    from splitwise.simulation.result import Result
    from splitwise.simulation.simulate import MachineGroup, Options, Outage
    from splitwise.simulation.summary import Summary

TIMELINE_SEGMENTS = 200_000

Machines = Annotated[list[str] | None, typer.Option(help="COUNTxKIND, such as 25xdgx-h100.")]
Out = Annotated[Path | None, typer.Option(help="File to write.")]


def simulate(
    source: Annotated[
        str, typer.Argument(help="conversation, coding, or a CSV or JSONL file of requests.")
    ] = "conversation",
    model: Annotated[str, typer.Option(help="A model of the profile.")] = "llama2-70b",
    prompt: Machines = None,
    token: Machines = None,
    mixed: Machines = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second.")] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds of arrivals.")] = None,
    arrivals: Annotated[
        str | None,
        typer.Option(
            help="poisson, gamma:CV, diurnal:AMPLITUDE[:PERIOD], steps:0=RATE,..., replay"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    profile: Annotated[
        str, typer.Option(help="measured, published-2024, or a profile file.")
    ] = "measured",
    prices: Annotated[str, typer.Option(help="Price and power set of the profile.")] = "paper",
    rules: Annotated[
        str, typer.Option(help="default, or published-2024 as the public simulator has them.")
    ] = "default",
    reference: Annotated[
        str | None,
        typer.Option(
            help="Machine kind that slowdowns are measured against; default dgx-a100, "
            "or the first machine of other profiles."
        ),
    ] = None,
    slo: Annotated[
        list[str] | None,
        typer.Option(help="METRIC:pNN<=LIMIT, as ttft:p90<=3x or tbt:p99<=200ms; default: paper's"),
    ] = None,
    queue_threshold: Annotated[
        int, typer.Option(help="Pending tokens past which a prompt queue counts as long.")
    ] = 8192,
    batch_tokens: Annotated[int | None, typer.Option(help="Prompt tokens of a batch.")] = None,
    chunk_prompts: Annotated[bool, typer.Option(help="Cut long prompts to the batch.")] = False,
    overlap: Annotated[bool, typer.Option(help="Send the cache layer by layer.")] = True,
    policy: PolicySource = DEFAULT.source,
    change_roles: Annotated[bool, typer.Option(help="Pull machines into the mixed pool.")] = True,
    cache: Annotated[
        str,
        typer.Option(
            "--kv-cache",
            help="promised: outputs' lengths are known beforehand; grown: they are not, as in a "
            "server, and requests may be preempted as caches grow.",
        ),
    ] = "promised",
    block_tokens: Annotated[int, typer.Option(help="Tokens of a block of a grown cache.")] = 16,
    outage: Annotated[
        list[str] | None,
        typer.Option(help="POOL:NUMBER@DOWN[-UP], such as token:0@60-90, in seconds."),
    ] = None,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds to leave out.")] = 0.0,
    html: Out = None,
    timeline: Out = None,
    requests_table: Out = None,
    machines_table: Out = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Run a workload through a cluster and report latencies, SLOs, machines and energy."""
    from splitwise.simulation.simulate import rules_named
    from splitwise.simulation.slowdown import PAPER_SLOS, parse_slo
    from splitwise.simulation.summary import summarise

    try:
        load = open_source(source, rate, duration, seed, arrivals)
        groups = [
            *_groups(prompt or (), Pool.PROMPT, model, profile, prices),
            *_groups(token or (), Pool.TOKEN, model, profile, prices),
            *_groups(mixed or (), Pool.MIXED, model, profile, prices),
        ]
        base = rules_named(rules)
        options = replace(
            base,
            chunk_prompts=chunk_prompts,
            change_roles=change_roles,
            queue_threshold_tokens=queue_threshold,
            overlap=base.overlap and overlap,
            batch_tokens=batch_tokens or base.batch_tokens,
            cache=cache,
            block_tokens=block_tokens,
            policy=load_policy(policy),
            timeline_segments=TIMELINE_SEGMENTS if timeline is not None else 0,
        )
        result = _run(load, groups, options, [_outage(text, groups) for text in outage or ()])
        kinds = [group.name for group in groups]
        compared = reference or usual_reference(profile, [*kinds, PAPER_REFERENCE])
        alone = load_profile(profile, compared, model, prices)
        slos = tuple(parse_slo(text) for text in slo) if slo else PAPER_SLOS
        summary = summarise(result, alone, slos, warmup)
        _write(result, summary, source, html, timeline, requests_table, machines_table)
    except ValueError as error:
        fail(error)
    _print(summary, as_json)


def _groups(
    specs: Sequence[str], pool: Pool, model: str, profile: str, prices: str
) -> list["MachineGroup"]:
    from splitwise.simulation.simulate import MachineGroup

    groups = []
    for spec in specs:
        count, found, kind = spec.partition("x")
        if not found or not count.isdigit() or int(count) < 1:
            raise ValueError(f"--{pool.name.lower()} is {spec!r}; write COUNTxKIND, 25xdgx-h100")
        times = load_profile(profile, kind, model, prices)
        groups.append(MachineGroup(kind, times, pool, int(count)))
    return groups


def _outage(text: str, groups: "Sequence[MachineGroup]") -> "Outage":
    from splitwise.simulation.simulate import Outage

    form = re.fullmatch(r"(prompt|token|mixed):(\d+)@([\d.]+)(?:-([\d.]+))?", text)
    if form is None:
        raise ValueError(f"--outage is {text!r}; write POOL:NUMBER@DOWN[-UP], token:0@60-90")
    pools = [group.pool for group in groups for _ in range(group.count)]
    machines = [i for i, pool in enumerate(pools) if pool.name.lower() == form[1]]
    number = int(form[2])
    if number >= len(machines):
        raise ValueError(
            f"--outage is {text!r}; the cluster has {len(machines)} {form[1]} machines"
        )
    return Outage(machines[number], float(form[3]), float(form[4] or "inf"))


def _run(
    load: Requests,
    groups: "Sequence[MachineGroup]",
    options: "Options",
    outages: "Sequence[Outage]",
) -> "Result":
    """Simulate under a progress bar, which is silent when nobody looks."""
    from splitwise.simulation.simulate import simulate as run

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("requests", total=len(load))
        return run(
            load, groups, options, outages, lambda arrived: bar.update(task, completed=arrived)
        )


def _write(
    result: "Result",
    summary: "Summary",
    source: str,
    html: Path | None,
    timeline: Path | None,
    requests_table: Path | None,
    machines_table: Path | None,
) -> None:
    from splitwise.simulation.report import write_html
    from splitwise.simulation.table_files import write_machines, write_requests
    from splitwise.simulation.timeline import write_timeline

    if html is not None:
        write_html(result, summary, html, f"Splitwise simulation: {source}")
    if timeline is not None:
        write_timeline(result, timeline)
    if requests_table is not None:
        write_requests(result, requests_table)
    if machines_table is not None:
        write_machines(result, machines_table)


def _print(summary: "Summary", as_json: bool) -> None:
    from splitwise.simulation.report_terminal import print_summary

    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(summary.to_dict())).decode())
    else:
        print_summary(summary)
