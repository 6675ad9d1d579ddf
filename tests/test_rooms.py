"""The house's walls: which room imports which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "splitwise"
# From the ground up: what a room may import stands above it, so there are no circles.
MAY_IMPORT = {
    "scheduling": set[str](),
    "hardware": set[str](),
    "workload": set[str](),
    "transfer": set[str](),
    "observe": set[str](),
    "engine": {"transfer"},
    "protocol": {"scheduling", "engine", "transfer"},
    "simulation": {"scheduling", "hardware", "workload", "observe"},
    "planning": {"scheduling", "hardware", "workload", "simulation", "observe"},
    "worker": {"scheduling", "engine", "transfer", "protocol"},
    "cluster": {"scheduling", "engine", "transfer", "protocol", "observe"},
    "launch": {"scheduling", "protocol"},
    "gateway": {"scheduling", "engine", "protocol", "cluster", "launch", "observe"},
    "cli": {
        *("scheduling", "engine", "transfer", "observe", "protocol", "worker", "cluster"),
        *("launch", "gateway", "hardware", "workload", "simulation", "planning"),
    },
}
ALSO = {"transfer": "splitwise.protocol.handshake"}
"""One package of a room above that a room may import; it imports nothing of ours but itself."""
BESIDE = {"collector"}
"""Modules of no room, which import nothing of ours."""
NO_IO_IN_SCHEDULING = {"asyncio", "time", "torch", "socket", "os", "threading", "random"}


def modules_of(room: str) -> list[Path]:
    return sorted((SOURCE / room).rglob("*.py"))


def imports_of(module: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            found.add(node.module or "")
    return found


def test_every_room_is_listed() -> None:
    rooms = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    assert rooms == set(MAY_IMPORT)


def test_no_arrow_runs_up() -> None:
    above: set[str] = set()
    for room, below in MAY_IMPORT.items():
        assert below <= above, f"{room} imports what stands below it in the list"
        above.add(room)


def test_what_stands_beside_the_rooms_needs_none() -> None:
    assert {path.stem for path in SOURCE.glob("*.py")} == BESIDE | {"__init__"}
    for name in BESIDE:
        assert not {n for n in imports_of(SOURCE / f"{name}.py") if n.startswith("splitwise")}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_room_imports_only_what_it_may(room: str) -> None:
    for module in modules_of(room):
        for name in imports_of(module):
            if name.startswith("splitwise."):
                other = name.split(".")[1]
                if room in ALSO and f"{name}.".startswith(f"{ALSO[room]}."):
                    continue
                assert other in MAY_IMPORT[room] | BESIDE | {room}, f"{module} imports {name}"


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_no_module_imports_itself_by_way_of_others(room: str) -> None:
    """Imports for type checkers alone count, too: who reads one module must read the other."""
    left = {
        ".".join(module.relative_to(SOURCE.parent).with_suffix("").parts): imports_of(module)
        for module in modules_of(room)
        if module.name != "__init__.py"
    }
    while free := {name for name, needs in left.items() if not needs & set(left)}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left, f"in a circle, or above one: {sorted(left)}"


@pytest.mark.parametrize("package", ALSO.values())
def test_what_a_room_below_may_import_leads_nowhere(package: str) -> None:
    folder = SOURCE.joinpath(*package.split(".")[1:])
    for module in sorted(folder.rglob("*.py")):
        ours = {name for name in imports_of(module) if name.startswith("splitwise")}
        assert all(f"{name}.".startswith(f"{package}.") for name in ours), module


def test_scheduling_does_no_io() -> None:
    for module in modules_of("scheduling"):
        heads = {name.split(".")[0] for name in imports_of(module)}
        assert not heads & NO_IO_IN_SCHEDULING, module


def test_import_is_light() -> None:
    """The core must start fast: no torch, transformers or numba until a command needs them."""
    code = (
        "import sys, splitwise, splitwise.scheduling.placement, splitwise.engine.base, "
        "splitwise.engine.model_files, splitwise.transfer, splitwise.cli.main, "
        "splitwise.hardware, splitwise.workload, splitwise.simulation.report, "
        "splitwise.simulation.table_files;"
        "heavy = ('torch', 'transformers', 'numba', 'ray', 'matplotlib', 'pyarrow');"
        "print([m for m in heavy if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "[]"
