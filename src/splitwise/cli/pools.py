"""``splitwise pools``: which pool each machine of a running cluster stands in; set it, drain it."""

import json
import os
from http.client import HTTPException
from typing import Annotated, Any, Final
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import typer
from rich.console import Console
from rich.table import Table

from splitwise.cli.errors import fail
from splitwise.scheduling.pool import POOL_NAMES

app = typer.Typer(
    help="Show and set the pools of a running cluster; the admin key is taken from "
    "SPLITWISE_ADMIN_KEY, here and by `splitwise serve`.",
    invoke_without_command=True,
)
TIMEOUT_S: Final = 10.0
HEADINGS: Final = (
    *("machine", "home", "pool", "state", "pending tokens", "waiting"),
    *("cache tokens", "of", "role changes"),
)

Url = Annotated[str, typer.Option(help="Base URL of the gateway.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def show(
    context: typer.Context, url: Url = "http://127.0.0.1:8000", as_json: AsJson = False
) -> None:
    """Show every machine: its home and present pool, and its load."""
    context.obj = url
    if context.invoked_subcommand is not None:
        return
    answer = _ask(url, "GET", "/admin/pools")
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    table = Table(*HEADINGS)
    for column in table.columns[4:]:
        column.justify = "right"
    for machine in answer["machines"]:
        table.add_row(*_row(machine))
    Console().print(table)


@app.command("set")
def set_pool(
    context: typer.Context,
    machine: Annotated[str, typer.Argument(help="Machine id.")],
    pool: Annotated[str, typer.Argument(help="prompt (prefill), token (decode) or mixed.")],
) -> None:
    """Give a machine another home pool; what it runs is not disturbed."""
    if pool not in POOL_NAMES:
        fail(f"{pool!r}: choose prompt (prefill), token (decode) or mixed", code=2)
    answer = _ask(context.obj, "PATCH", f"/admin/pools/{quote(machine, safe='')}", {"pool": pool})
    typer.echo(f"{answer['machine_id']} is at home in the {answer['home']} pool")


@app.command()
def drain(
    context: typer.Context,
    machine: Annotated[str, typer.Argument(help="Machine id.")],
    undo: Annotated[bool, typer.Option("--undo", help="Keep it, if it has not left yet.")] = False,
) -> None:
    """Let a machine end what it runs and leave; it gets nothing new and is not started again."""
    order = {"drain": not undo}
    answer = _ask(context.obj, "PATCH", f"/admin/pools/{quote(machine, safe='')}", order)
    typer.echo(f"{answer['machine_id']} {'drains' if answer['draining'] else 'stays'}")


def _row(machine: dict[str, Any]) -> list[str]:
    return [
        *(machine["machine_id"], machine["home"], machine["pool"], _state(machine)),
        *(str(machine["pending_tokens"]), str(machine["waiting"]), str(machine["kv_tokens"])),
        *(str(machine["kv_capacity_tokens"]), str(machine["role_changes"])),
    ]


def _state(machine: dict[str, Any]) -> str:
    if not machine["up"]:
        return "left" if machine["draining"] else "lost"
    return next((state for state in ("quiet", "draining", "quarantined") if machine[state]), "up")


def _ask(url: str, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The gateway's answer; what goes wrong ends the command with the reason."""
    key = os.environ.get("SPLITWISE_ADMIN_KEY")
    if not key:
        fail("SPLITWISE_ADMIN_KEY is not set: set it to the admin key the server was started with")
    try:
        request = Request(
            url.rstrip("/") + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
            method=method,
        )
        with urlopen(request, timeout=TIMEOUT_S) as response:
            answer: dict[str, Any] = json.load(response)
    except HTTPError as error:
        fail(f"{url}: {_reason(error)}")
    except (OSError, HTTPException, ValueError) as error:
        fail(f"--url {url}: no splitwise gateway answers there ({error})", code=2)
    return answer


def _reason(error: HTTPError) -> str:
    """What the gateway said; the bare status where another server answers."""
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(error)
