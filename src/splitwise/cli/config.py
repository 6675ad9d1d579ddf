"""Where options come from: flags, then a YAML file, then ``SPLITWISE_*`` in the environment."""

import os
from pathlib import Path
from typing import Any, Final

import typer

ENVIRONMENT_PREFIX: Final = "SPLITWISE_"


def defaults_from_environment_and_file(context: typer.Context, file: Path | None) -> Path | None:
    """Typer callback of an eager ``--config``: put both under the command's flags."""
    known = {parameter.name for parameter in context.command.params if parameter.name}
    defaults: dict[str, Any] = {
        name: os.environ[ENVIRONMENT_PREFIX + name.upper()]
        for name in known
        if ENVIRONMENT_PREFIX + name.upper() in os.environ
    }
    if file is not None:
        defaults |= _read(file, known)
    context.default_map = {**(context.default_map or {}), **defaults}
    return file


def _read(file: Path, known: set[str]) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"{file}: {error}") from error
    if not isinstance(content, dict):
        raise typer.BadParameter(f"{file}: expected options as `name: value` lines")
    options = {str(name).replace("-", "_"): value for name, value in content.items()}
    if unknown := sorted(options.keys() - known):
        raise typer.BadParameter(
            f"{file}: no such option {', '.join(unknown)}; choose from {', '.join(sorted(known))}"
        )
    return options
