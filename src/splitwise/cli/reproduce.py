"""``splitwise reproduce``: the paper's figures, made anew beside the published ones."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from splitwise.cli.errors import fail
from splitwise.cli.plan import (
    ALL_CORES,
    Cache,
    Cores,
    RayAddress,
    check_report,
    fail_interrupted,
)
from splitwise.cli.progress import progress_bar


def reproduce(
    part: Annotated[
        list[str],
        typer.Argument(
            help="poster, iso-power, iso-cost, iso-throughput, robustness, characterization, "
            "claims or all."
        ),
    ],
    model: Annotated[str, typer.Option(help="Of all but the poster.")] = "bloom-176b",
    seeds: Annotated[int, typer.Option(min=1, help="How many.")] = 3,
    traces: Annotated[
        Path | None,
        typer.Option(
            envvar="SPLITWISE_TRACES",
            help="Folder of the Azure LLM inference traces 2023; without it sizes are built in.",
        ),
    ] = None,
    cores: Cores = ALL_CORES,
    ray: RayAddress = None,
    cache: Cache = None,
    html: Annotated[Path | None, typer.Option(help="Report to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Make the paper's cluster figures anew, with the published numbers and the difference."""
    from splitwise.planning.reproduce.parts import Ground, make
    from splitwise.planning.reproduce.report import write_html
    from splitwise.planning.reproduce.section import print_section
    from splitwise.planning.reproduce.setting import find_traces
    from splitwise.planning.store import store_path
    from splitwise.planning.workers import Crew, open_mapper

    ground = Ground(model, find_traces(traces), tuple(range(1, seeds + 1)))
    try:
        if html is not None:
            check_report(html)
        with (
            store_path(cache) as store,
            open_mapper(cores, ray) as mapper,
            progress_bar() as tell,
        ):
            sections = make(part, Crew(mapper, store, tell), ground)
        if html is not None:
            write_html(sections, html)
    except (ValueError, OSError) as error:
        fail(error)
    except KeyboardInterrupt:
        fail_interrupted(cache)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(sections)).decode())
        return
    console = Console()
    for section in sections:
        print_section(section, console)
