"""How fast the simulator is: requests a CPU-second, flatness, start-up, a million requests.

Compare with the authors' public simulator on the same kind of load, 500 to 2,000 requests a
CPU-second, patched. The first start compiles in an empty cache folder; the second loads from it.

    python benchmarks/simulator.py [--requests 300000]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from common import environment, write_result

START = (
    "import time; t = time.perf_counter();"
    "from splitwise.hardware import load_profile;"
    "from splitwise.scheduling.pool import Pool;"
    "from splitwise.simulation.simulate import MachineGroup, simulate;"
    "from splitwise.workload import generate;"
    "times = load_profile('measured', 'dgx-a100', 'llama2-70b');"
    "simulate(generate('coding', 1.0, count=10), [MachineGroup('a', times, Pool.MIXED, 1)]);"
    "print(time.perf_counter() - t)"
)
MILLION = 1_000_000


@dataclass(frozen=True)
class Speed:
    """One run."""

    cluster: str
    workload: str
    profile: str
    machines: int
    requests: int
    rate_per_s: float
    cpu_s: float
    requests_per_cpu_s: float
    peak_rss_mb: float


def measure(
    workload: str, profile: str, machines: int, requests: int, rate_a_machine: float, split: bool
) -> Speed:
    """Simulate a cluster of ``machines`` A100 machines, two thirds of them prompt if split."""
    from splitwise.hardware import load_profile
    from splitwise.scheduling.pool import Pool
    from splitwise.simulation.simulate import MachineGroup, simulate
    from splitwise.workload import generate

    times = load_profile(profile, "dgx-a100", "bloom-176b")
    prompts = machines * 45 // 70
    groups = [MachineGroup("mixed", times, Pool.MIXED, machines)]
    if split:
        groups = [
            MachineGroup("prompt", times, Pool.PROMPT, prompts),
            MachineGroup("token", times, Pool.TOKEN, machines - prompts),
        ]
    rate = rate_a_machine * machines
    simulate(generate(workload, rate, count=100), groups)  # compiled, or loaded
    load = generate(workload, rate, count=requests, seed=1)
    began = time.process_time()
    result = simulate(load, groups)
    cpu_s = time.process_time() - began
    assert (result.status == 0).all()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    name = f"{prompts}P + {machines - prompts}T" if split else f"{machines} mixed"
    return Speed(
        name, workload, profile, machines, requests, rate, cpu_s, requests / cpu_s, peak_mb
    )


def start_s(cache: str) -> float:
    """Seconds from the first import to the first answer, in a new process."""
    environ = {**os.environ, "XDG_CACHE_HOME": cache}
    command = [sys.executable, "-c", START]
    out = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    return float(out.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=300_000)
    requests = parser.parse_args().requests
    with tempfile.TemporaryDirectory() as cache:
        first, later = start_s(cache), start_s(cache)
    runs = [
        measure(workload, profile, 70, requests, 1.0, split)
        for workload in ("conversation", "coding")
        for profile in ("published-2024", "measured")
        for split in (False, True)
        if (workload, profile, split) != ("coding", "measured", False)  # it would drown
    ]
    flat = [measure("conversation", "measured", n, requests, 0.7, True) for n in (10, 100, 1000)]
    million = measure("conversation", "measured", 700, MILLION, 0.7, True)
    table = Table(title="Simulator")
    for column in ("workload", "profile", "cluster", "requests", "k requests/CPU-s", "RSS MB"):
        table.add_column(column, justify="right")
    for run in [*runs, *flat, million]:
        table.add_row(
            *(run.workload, run.profile, run.cluster, f"{run.requests:,}"),
            *(f"{run.requests_per_cpu_s / 1000:.0f}", f"{run.peak_rss_mb:.0f}"),
        )
    Console().print(table, f"first start {first:.1f} s (compiles), later {later:.2f} s")
    record = {
        "environment": environment(),
        "first_start_s": first,
        "later_start_s": later,
        "same_load": [asdict(run) for run in runs],
        "flatness": [asdict(run) for run in flat],
        "million": asdict(million),
    }
    print(json.dumps({"written": str(write_result("simulator", record))}))


if __name__ == "__main__":
    main()
