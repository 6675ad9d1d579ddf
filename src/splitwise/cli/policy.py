"""``--policy``, as ``simulate``, ``plan``, ``serve`` and ``worker`` have it."""

from typing import Annotated, Final

import typer

from splitwise.scheduling.policies.policy import SHIPPED

POLICY_HELP: Final = f"Who decides: {', '.join(SHIPPED)}, or a Python file; docs/policies.md."
PolicySource = Annotated[str, typer.Option("--policy", help=POLICY_HELP)]
