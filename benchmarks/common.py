"""What all benchmarks share: where they ran, and where their figures go."""

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "amx_tile")
"""What makes a machine of the same name twice as fast."""
_PACKAGES = ("torch", "transformers", "numba", "numpy")


def environment(device: str = "cpu", more_packages: Sequence[str] = ()) -> dict[str, Any]:
    """Date, machine and versions, for the record of a run."""
    record: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_line("model name"),
        "cpu_flags": [flag for flag in _FLAGS if flag in _cpu_line("flags").split()],
        "cores_allowed": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name) for name in (*_PACKAGES, *more_packages)
        },
    }
    if device.startswith("cuda"):
        import torch

        record["gpu"] = torch.cuda.get_device_name(device)
    return record


def write_result(name: str, record: dict[str, Any]) -> Path:
    """Write ``record`` to ``benchmarks/results/<name>.json`` and return the file."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return file


def read_result(name: str) -> dict[str, Any]:
    """What is recorded so far, so that each case can be run by itself; empty where nothing is."""
    file = RESULTS / f"{name}.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that ``percent`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """What is usual, what is rare, and what the best tenth of them took, which other users of the
    machine disturbed least."""
    return {f"p{p}_ms": percentile(seconds, p) * 1e3 for p in (10, 50, 99)}


def _cpu_line(name: str) -> str:
    """What the kernel says of the first core under that name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(name):
            return line.split(":", 1)[1].strip()
    return platform.processor()
