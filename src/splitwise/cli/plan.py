"""``splitwise plan``: which machines to buy, and how to split them."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import msgspec
import typer

from splitwise.cli.errors import fail
from splitwise.cli.policy import PolicySource
from splitwise.cli.progress import progress_bar
from splitwise.scheduling.policies.policy import DEFAULT, load_policy

if TYPE_CHECKING:  # the simulator brings numba along
    from splitwise.hardware import IterationTimes
    from splitwise.planning.question import Objective, Offer

INTERRUPTED = 130
SMALL_RATE = 20.0
RELATIVE_RESOLUTION = 0.005
ALL_CORES = os.cpu_count() or 1
Cores = Annotated[int, typer.Option(min=1, help="Processes; default: all cores.")]
RayAddress = Annotated[
    str | None, typer.Option("--ray", help="Address of a Ray cluster, or local; extra ray.")
]
Cache = Annotated[str | None, typer.Option(help="File of known outcomes; none: keep nothing.")]


def plan(
    source: Annotated[
        str, typer.Argument(help="conversation, coding, or a CSV or JSONL file of requests.")
    ] = "conversation",
    offer: Annotated[
        list[str] | None,
        typer.Option(
            help="KIND[@DOLLARS_PER_HOUR[/WATTS]][:STOCK], such as dgx-h100:40 or 8xh200@32:20; "
            "default: all of the profile."
        ),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second to carry; none: as many as possible.")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="throughput, cost, power, machines or energy (joules a token)."),
    ] = None,
    model: Annotated[str, typer.Option(help="A model of the profile.")] = "llama2-70b",
    slo: Annotated[
        list[str] | None,
        typer.Option(help="METRIC:pNN<=LIMIT, as ttft:p90<=3x or tbt:p99<=200ms; default: paper's"),
    ] = None,
    max_cost: Annotated[float, typer.Option(help="Dollars an hour.")] = float("inf"),
    max_power: Annotated[float, typer.Option(help="Provisioned watts.")] = float("inf"),
    max_machines: Annotated[float, typer.Option(help="Machines.")] = float("inf"),
    profile: Annotated[
        str, typer.Option(help="measured, published-2024, roofline, aiconfigurator, or a file.")
    ] = "measured",
    prices: Annotated[str, typer.Option(help="Price and power set of the profile.")] = "paper",
    rules: Annotated[str, typer.Option(help="default or published-2024.")] = "default",
    policy: PolicySource = DEFAULT.source,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Machine kind that slowdowns are measured against; default dgx-a100, "
            "or the first on offer."
        ),
    ] = None,
    arrivals: Annotated[
        str | None, typer.Option(help="poisson, gamma:CV, diurnal:..., steps:..., replay")
    ] = None,
    duration: Annotated[
        float | None, typer.Option(help="Seconds of arrivals; default: 3,000 requests, 240 s.")
    ] = None,
    warm_up: Annotated[float, typer.Option(min=0, max=0.9, help="Share that is left out.")] = 0.25,
    seeds: Annotated[int, typer.Option(min=1, help="How many.")] = 3,
    resolution: Annotated[
        float | None, typer.Option(help="Steps of the rate; default 1, or a 20th of a small rate.")
    ] = None,
    what_if: Annotated[bool, typer.Option(help="Ask how the answer changes.")] = True,
    cores: Cores = ALL_CORES,
    ray: RayAddress = None,
    cache: Cache = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a report with plots; simulates some more.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Search the clusters that carry a load within its targets, and name the best."""
    from splitwise.hardware.loading import usual_reference
    from splitwise.planning.demand import Demand
    from splitwise.planning.plan import plan as answer
    from splitwise.planning.question import Limits, Question
    from splitwise.planning.record import record_of
    from splitwise.planning.report import write_html
    from splitwise.planning.report_terminal import commands_of, print_plan
    from splitwise.planning.store import store_path
    from splitwise.planning.workers import Crew, open_mapper
    from splitwise.simulation.simulate import rules_named
    from splitwise.simulation.slowdown import PAPER_SLOS, parse_slo

    options = {"model": model, "profile": profile, "prices": prices, "rules": rules}
    try:
        if html is not None:
            check_report(html)
        offers = _offers(offer or _all_kinds(profile, model), profile, model, prices)
        compared = reference or usual_reference(profile, [one.name for one in offers])
        question = Question(
            Demand(source, arrivals, duration, warm_up),
            offers,
            _reference(compared, offers, profile, model, prices),
            _objective(objective, rate),
            rate,
            Limits(max_cost, max_power, max_machines),
            tuple(parse_slo(text) for text in slo) if slo else PAPER_SLOS,
            replace(rules_named(rules), policy=load_policy(policy)),
            tuple(range(1, seeds + 1)),
            _resolution(rate) if resolution is None else resolution,
            RELATIVE_RESOLUTION,
        )
        with (
            store_path(cache) as store,
            open_mapper(cores, ray) as mapper,
            progress_bar() as tell,
        ):
            crew = Crew(mapper, store, tell)
            found = answer(question, crew, what_if)
            commands = commands_of(found, source, {**options, "reference": compared})
            if html is not None:
                write_html(found, crew, html, f"Splitwise plan: {source}", commands)
    except (ValueError, OSError) as error:
        fail(error)
    except KeyboardInterrupt:
        fail_interrupted(cache)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(record_of(found, commands))).decode())
    else:
        print_plan(found, commands)


def fail_interrupted(cache: str | None) -> NoReturn:
    """Say what becomes of the work that was done."""
    from splitwise.planning.store import NO_CACHE

    kept = "what was simulated is kept; run it again to go on"
    fail(f"interrupted; {'nothing is kept' if cache == NO_CACHE else kept}", INTERRUPTED)


def _resolution(rate: float | None) -> float:
    """Steps of 1, and finer ones for a small rate."""
    return min(1.0, rate / SMALL_RATE) if rate is not None and rate > 0 else 1.0


def check_report(html: Path) -> None:
    """Before the search, which may take minutes."""
    from splitwise.observe.page import require_matplotlib

    require_matplotlib()
    if html.is_dir() or not html.absolute().parent.is_dir():
        raise ValueError(f"--html is {str(html)!r}; give a file in a folder that exists")


def _all_kinds(profile: str, model: str) -> list[str]:
    from splitwise.hardware.loading import PREDICTED, ROOFLINE, pairs, profile_contents

    if profile in (ROOFLINE, PREDICTED):
        raise ValueError(f"--offer: none; name machines for {profile}, such as 8xh100@38")
    return [machine for machine, one in pairs(profile_contents(profile)) if one == model]


def _offers(texts: list[str], profile: str, model: str, prices: str) -> "tuple[Offer, ...]":
    return tuple(_offer(text, profile, model, prices) for text in texts)


def _offer(text: str, profile: str, model: str, prices: str) -> "Offer":
    from splitwise.hardware import load_profile
    from splitwise.hardware.loading import PREDICTED, ROOFLINE
    from splitwise.planning.question import DEFAULT_STOCK, Offer

    number = r"(\d+(?:\.\d+)?)"
    form = re.fullmatch(rf"([\w.-]+)(?:@{number}(?:/{number})?)?(?::(\d+))?", text)
    if form is None:
        raise ValueError(f"--offer is {text!r}; write KIND[@DOLLARS_PER_HOUR[/WATTS]][:STOCK]")
    kind, dollars, watts, stock = form.groups()
    # Machines without a profile file have their price in their name.
    name = f"{kind}@{dollars}" if dollars and profile in (ROOFLINE, PREDICTED) else kind
    times = load_profile(profile, name, model, prices)
    if dollars:
        times = replace(times, dollars_per_hour=float(dollars))
    if watts:
        times = replace(times, provisioned_watts=float(watts))
    return Offer(name, times, int(stock) if stock else DEFAULT_STOCK)


def _reference(
    name: str, offers: "tuple[Offer, ...]", profile: str, model: str, prices: str
) -> "IterationTimes":
    from splitwise.hardware import load_profile

    offered = {offer.name: offer.times for offer in offers}
    return offered[name] if name in offered else load_profile(profile, name, model, prices)


def _objective(name: str | None, rate: float | None) -> "Objective":
    from splitwise.planning.question import Objective

    if name is None:
        return Objective.THROUGHPUT if rate is None else Objective.COST
    if name not in list(Objective):
        raise ValueError(f"--objective is {name!r}; choose from {', '.join(Objective)}")
    return Objective(name)
