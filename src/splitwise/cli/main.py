"""The ``splitwise`` command: one thin file a subcommand."""

import typer

from splitwise import __version__
from splitwise.cli import hardware, plan, pools, reproduce, serve, simulate, worker, workload
from splitwise.cli.extras import Commands

app = typer.Typer(
    name="splitwise",
    cls=Commands,
    help="Serve large language models with the prompt phase and the token phase on different "
    "machines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("serve")(serve.serve)
app.command("worker")(worker.worker)
app.command("simulate")(simulate.simulate)
app.command("plan")(plan.plan)
app.command("reproduce")(reproduce.reproduce)
app.add_typer(pools.app, name="pools")
app.add_typer(workload.app, name="workload")
app.add_typer(hardware.app, name="hardware")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
