"""How a command ends when it cannot go on."""

from typing import NoReturn

import typer
from rich.console import Console


def fail(reason: object, code: int = 1) -> NoReturn:
    """Print why to standard error, in one line, and exit with ``code``.

    A worker's last line is what its parent quotes, and engines give reasons of many lines.
    """
    line = " ".join(part.strip() for part in str(reason).splitlines())
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"splitwise: {line}", markup=False)
    raise typer.Exit(code)
