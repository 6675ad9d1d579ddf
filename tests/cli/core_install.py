"""Runs the command as in an install of the core alone: whatever an extra brings is not there.

``python core_install.py ARGUMENTS``. What may be imported is what the core's distributions and
those that they require have, by their own metadata.
"""

import re
import sys
from importlib.abc import MetaPathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

from packaging.requirements import Requirement


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def core_distributions() -> set[str]:
    """The core's requirements and, in turn, theirs; no extras."""
    found: set[str] = set()
    open_ = {"splitwise-llm"}
    while open_:
        name = open_.pop()
        found.add(canonical(name))
        try:
            wanted = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:
            continue
        for one in wanted:
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                open_ |= {one.name} - found
    return found


class Blocker(MetaPathFinder):
    """Finds no module that only distributions beyond the core bring."""

    def __init__(self) -> None:
        core = core_distributions()
        self._beyond = {
            module
            for module, owners in packages_distributions().items()
            if not {canonical(owner) for owner in owners} & core
        } | {"ray", "nixl", "aiconfigurator_core", "aisimulate_core", "vllm"}

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] in self._beyond:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocker())
    from splitwise.cli.main import main

    main()
