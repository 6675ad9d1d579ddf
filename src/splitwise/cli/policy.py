"""``--policy``, as ``simulate``, ``plan`` and ``serve`` have it."""

from typing import Annotated

import typer

from splitwise.scheduling.policies.policy import SHIPPED

PolicySource = Annotated[
    str,
    typer.Option(
        "--policy", help=f"Who decides: {', '.join(SHIPPED)}, or a Python file; docs/policies.md."
    ),
]
