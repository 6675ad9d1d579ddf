"""How a command ends when it cannot go on."""

from typing import NoReturn

import typer
from rich.console import Console


def fail(reason: object, code: int = 1) -> NoReturn:
    """Print why to standard error and exit with ``code``."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"splitwise: {reason}", markup=False
    )
    raise typer.Exit(code)
