"""``splitwise hardware``: what machine kinds are known, what they can do, and how sure that is."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from splitwise.cli.errors import fail

if TYPE_CHECKING:
    from splitwise.hardware import IterationTimes
    from splitwise.hardware.profile_file import ProfileFile

app = typer.Typer(help="Machine kinds: times, power, prices.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Profile = Annotated[
    str, typer.Option(help="measured, published-2024, roofline, aiconfigurator, or a profile file.")
]
Prices = Annotated[str, typer.Option(help="Set of prices and power: paper or plots.")]

SHOWN_PROMPTS = (128, 512, 1024, 2048, 4096, 8192)
SHOWN_DECODES = (1, 8, 16, 32, 64, 128)
SHOWN_CONTEXT = 1024
CHECKED = ["efficiency", "machine", "model", "what", "median_ratio", "worst_error"]
LISTED = ["machine", "model", "gpus", "kv_capacity_tokens", "provisioned_watts", "dollars_per_hour"]


@app.command("list")
def list_machines(
    profile: Profile = "measured", prices: Prices = "paper", as_json: Json = False
) -> None:
    """List the machine kinds of a profile, with each model."""
    from splitwise.hardware import HardwareError, load_profile
    from splitwise.hardware.gpus import GPUS
    from splitwise.hardware.loading import PREDICTED, ROOFLINE, pairs, profile_contents

    try:
        if profile in (ROOFLINE, PREDICTED):
            rows: list[dict[str, Any]] = [
                {"gpu": name, **asdict(gpu)} for name, gpu in GPUS.items()
            ]
            source = "data sheets; name machines as 8xh100, or with dollars an hour as 8xh200@32"
        else:
            contents = profile_contents(profile)
            source = contents.source
            rows = [
                {"machine": machine, "model": model}
                | _sizes(load_profile(profile, machine, model, prices))
                for machine, model in pairs(contents)
            ]
    except HardwareError as error:
        fail(error)
    if profile not in (ROOFLINE, PREDICTED) and not as_json:
        rows = [{name: row[name] for name in LISTED} for row in rows]
    _print_rows(rows, source, as_json)


@app.command()
def show(
    machine: Annotated[str, typer.Argument(help="Machine kind, or 8xh100 of the roofline.")],
    model: Annotated[str, typer.Argument(help="Model, or a config.json for the roofline.")],
    profile: Profile = "measured",
    prices: Prices = "paper",
    as_json: Json = False,
) -> None:
    """Show how long iterations of a machine kind with a model take."""
    from splitwise.hardware import HardwareError, load_profile

    try:
        times = load_profile(profile, machine, model, prices)
    except HardwareError as error:
        fail(error)
    rows = [
        *(
            {"iteration": f"{n} prompt tokens", "ms": _ms(times.prompt_time_s(n))}
            for n in SHOWN_PROMPTS
        ),
        *(
            {
                "iteration": f"{b} decodes of {SHOWN_CONTEXT} tokens",
                "ms": _ms(times.decode_time_s(b, b * SHOWN_CONTEXT)),
            }
            for b in SHOWN_DECODES
        ),
    ]
    if as_json:
        typer.echo(json.dumps(_sizes(times) | {"iterations": rows}, indent=2))
        return
    for name, value in _sizes(times).items():
        typer.echo(f"{name}: {value:,.10g}")
    _print_rows(rows, f"{machine}, {model}, profile {profile}", False)


@app.command()
def check(
    file: Annotated[
        Path | None, typer.Argument(help="Profile file to validate; none: the roofline's errors.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Validate a profile file, or show how far the roofline is from the measured points."""
    from splitwise.hardware import HardwareError, load_profile
    from splitwise.hardware.loading import pairs, profile_contents
    from splitwise.hardware.roofline_check import roofline_errors

    if file is None:
        note = "predicted / measured; fitted: on the A100 points alone, so H100 is unseen"
        rows = [asdict(error) for error in roofline_errors()]
        if not as_json:
            rows = [{name: row[name] for name in CHECKED} for row in rows]
        _print_rows(rows, note, as_json)
        return
    try:
        contents = profile_contents(file)
        for machine, model in pairs(contents):
            for prices in contents.machines[machine].prices:
                load_profile(file, machine, model, prices)
        if not pairs(contents):
            fail(f"{file}: points holds no machine with any model; add measurements")
    except HardwareError as error:
        fail(error)
    if as_json:
        typer.echo(json.dumps({"file": str(file), "pairs": pairs(contents), "valid": True}))
    else:
        typer.echo(f"{file}: valid, {_summary(contents)}")


def _summary(contents: "ProfileFile") -> str:
    return (
        f"{len(contents.points)} points, machines {', '.join(contents.machines)}, "
        f"models {', '.join(contents.models)}"
    )


def _sizes(times: "IterationTimes") -> dict[str, float]:
    names = (
        "gpus kv_capacity_tokens kv_bytes_per_token layers idle_watts decode_watts "
        "provisioned_watts dollars_per_hour link_bytes_per_s"
    )
    return {name: getattr(times, name) for name in names.split()}


def _ms(seconds: Any) -> float:
    return round(float(seconds) * 1e3, 2)


def _print_rows(rows: list[dict[str, Any]], caption: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"source": caption, "rows": rows}, indent=2))
        return
    table = Table(caption=caption, caption_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name, value in rows[0].items():
        heading = name.replace("_", " ")
        is_text = isinstance(value, str)
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=name == "machine")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console().print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e5 else f"{value:.3g}"
    return str(value)
