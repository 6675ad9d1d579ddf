"""How long planning takes: whole commands, each with an empty store of outcomes.

The poster's table (goal: under 60 s), the free search at the same power (two workloads, six
designs, both sets of rules; goal: under 10 minutes for one), and plans of a load that takes up to
200 machines of four kinds (goal: under 3 minutes).

    python benchmarks/planner.py [--traces FOLDER]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common import environment, write_result

MODEL = str(Path(__file__).parent.parent / "examples" / "llama-3.1-70b")
KINDS = ("8xa100:200", "8xh100:200", "8xh200@45:200", "8xb200@72:200")
TARGETS = ("--slo=ttft:p99<=1s", "--slo=tbt:p99<=50ms")
FOUR_KINDS = (
    *("plan", "conversation", "--profile=roofline", f"--model={MODEL}"),
    *(f"--offer={kind}" for kind in KINDS),
    *TARGETS,
)


@dataclass(frozen=True)
class Timing:
    """One command, from its start to its end."""

    what: str
    arguments: tuple[str, ...]
    wall_s: float
    cpu_s: float


def run(what: str, *arguments: str) -> Timing:
    """Run ``splitwise`` with an empty store."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "splitwise.cli.main", *arguments]
        began_s, began = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [*command, f"--cache={folder}/outcomes.sqlite"], check=True, stdout=subprocess.DEVNULL
        )
        wall_s, after = time.perf_counter() - began_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - began.ru_utime - began.ru_stime
    shown = tuple(one.replace(MODEL, "examples/llama-3.1-70b") for one in arguments)
    return Timing(what, shown, wall_s, cpu_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, help="folder of the public traces")
    traces = parser.parse_args().traces
    given = [f"--traces={traces}"] if traces else []
    timings = [
        run("poster", "reproduce", "poster", *given),
        run("same power, both rules", "reproduce", "iso-power", *given),
        run("four kinds, 300/s, least cost", *FOUR_KINDS, "--rate=300"),
        run("four kinds, 300/s, without what-if", *FOUR_KINDS, "--rate=300", "--no-what-if"),
        run("four kinds, most with 24 machines", *FOUR_KINDS, "--max-machines=24"),
    ]
    table = Table(title="Planner")
    for column in ("command", "wall s", "CPU s"):
        table.add_column(column, justify="left" if column == "command" else "right")
    for one in timings:
        table.add_row(one.what, f"{one.wall_s:.1f}", f"{one.cpu_s:.1f}")
    Console().print(table)
    record = {
        "environment": environment(),
        "traces": traces is not None,
        "timings": [asdict(one) for one in timings],
    }
    for timing in record["timings"]:
        timing["arguments"] = [a for a in timing["arguments"] if not a.startswith("--traces")]
    print(json.dumps({"written": str(write_result("planner", record))}))


if __name__ == "__main__":
    main()
