"""Two commits measured in turn, in one run: what did a change cost?

Each round runs the benchmarks of both commits, each from a checkout of its own, one after the
other, so that what else this host does falls on both. A ratio is that of the medians; of a rate
more is better, of everything else less.

    python benchmarks/side_by_side.py d1144c3 [HEAD] [--rounds 3] [--only CASE ...]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from common import environment, write_result

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Case:
    """A benchmark, and the figures taken from what it records: their paths in the JSON."""

    script: str
    arguments: tuple[str, ...]
    result: str
    figures: tuple[str, ...]


CASES = {
    "front": Case(
        "gateway.py",
        ("--only", "rate", "streamed", "scheduler", "--requests", "6000", "--seconds", "3"),
        "gateway",
        (
            "cases/rate/requests_per_s",
            "cases/rate/cpu_us_per_request/gateway",
            "cases/rate/cpu_us_per_request/prompt_worker",
            "cases/rate/cpu_us_per_request/token_worker",
            "cases/streamed/gateway_cpu_us_per_token",
            "cases/scheduler/1000_machines/decisions_per_s",
            "cases/scheduler/1000_machines/decision_p99_us",
        ),
    ),
    "simulator": Case(
        "simulator.py",
        (),
        "simulator",
        (
            "first_start_s",
            "later_start_s",
            *(f"same_load/{run}/requests_per_cpu_s" for run in range(7)),
            "million/requests_per_cpu_s",
        ),
    ),
}


@contextmanager
def checkouts(commits: Sequence[str]) -> Iterator[list[Path]]:
    """The commits, each in a folder of its own, for a while."""
    with tempfile.TemporaryDirectory() as home:
        folders = [Path(home) / str(place) for place in range(len(commits))]
        made: list[Path] = []
        try:
            for folder, commit in zip(folders, commits, strict=True):
                _git("worktree", "add", "--detach", str(folder), commit)
                made.append(folder)
            yield folders
        finally:
            for folder in made:
                _git("worktree", "remove", "--force", str(folder))


def _git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True)


def run(folder: Path, case: Case) -> dict[str, float]:
    """The figures of one benchmark of one checkout."""
    environ = {**os.environ, "PYTHONPATH": str(folder / "src")}
    command = [sys.executable, str(folder / "benchmarks" / case.script), *case.arguments]
    subprocess.run(command, cwd=folder, env=environ, check=True, stdout=subprocess.DEVNULL)
    record = json.loads((folder / "benchmarks" / "results" / f"{case.result}.json").read_text())
    return {path: _at(record, path) for path in case.figures}


def _at(record: Any, path: str) -> float:
    for part in path.split("/"):
        record = record[int(part)] if isinstance(record, list) else record[part]
    return float(record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before")
    parser.add_argument("after", nargs="?", default="HEAD")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    seen: dict[str, tuple[list[float], list[float]]] = {}
    with checkouts([options.before, options.after]) as folders:
        turns = [
            (name, place)
            for name in options.only
            for _ in range(options.rounds)
            for place in range(len(folders))
        ]
        for name, place in track(turns, console=Console(stderr=True), transient=True):
            for path, value in run(folders[place], CASES[name]).items():
                seen.setdefault(f"{name}: {path}", ([], []))[place].append(value)
    rows = {figure: _row(before, after) for figure, (before, after) in seen.items()}
    table = Table("figure", "before", "after", "after / before")
    for figure, row in rows.items():
        table.add_row(figure, *(f"{row[name]:,.2f}" for name in ("before", "after", "ratio")))
    Console().print(table)
    record = {
        "environment": environment(),
        "commits": [options.before, options.after],
        "rounds": options.rounds,
        "figures": rows,
    }
    print(json.dumps({"written": str(write_result("side_by_side", record))}))


def _row(before: list[float], after: list[float]) -> dict[str, Any]:
    medians = statistics.median(before), statistics.median(after)
    return {
        "before": medians[0],
        "after": medians[1],
        "ratio": medians[1] / medians[0],
        "runs": {"before": before, "after": after},
    }


if __name__ == "__main__":
    main()
