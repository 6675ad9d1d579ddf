"""The simulator against 52 runs of the authors' public simulator, on the same traces.

The published rules are ordinary options (``PUBLISHED_2024``) and a profile of the same name. P50,
P90 and P99 of TTFT, TBT and E2E agree within 0.01 % below saturation and 10 % above, but for the
figures in ``KNOWN``, each with its own bound.
"""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from splitwise.hardware.loading import load_profile
from splitwise.scheduling.pool import Pool
from splitwise.simulation.simulate import PUBLISHED_2024, MachineGroup, simulate

SPLIT = {
    ("conv", "AA"): ("dgx-a100", 45, "dgx-a100", 25),
    ("conv", "HH"): ("dgx-h100", 25, "dgx-h100", 15),
    ("conv", "HA"): ("dgx-h100", 25, "dgx-a100", 26),
    ("conv", "HHcap"): ("dgx-h100", 25, "dgx-h100-capped", 21),
    ("code", "AA"): ("dgx-a100", 55, "dgx-a100", 15),
    ("code", "HH"): ("dgx-h100", 35, "dgx-h100", 5),
    ("code", "HA"): ("dgx-h100", 35, "dgx-a100", 8),
    ("code", "HHcap"): ("dgx-h100", 35, "dgx-h100-capped", 7),
}
MIXED = {"A100": ("dgx-a100", 70), "A100-orca": ("dgx-a100", 70), "H100": ("dgx-h100", 40)}
SATURATED_RATE = 130
FIGURES = [f"{name}_p{p}" for name in ("ttft", "tbt", "e2e") for p in (50, 90, 99)]
KNOWN = {
    # Past saturation, with token memory full, five of its rules that we do not follow decide who is
    # pulled where: prompts past the batch do not cut decodes (SplitwiseInstance.task_arrival),
    # preempted decodes count as a queue (is_queue_long), equals are ordered by when they joined
    # the pool, a machine goes home though work is promised to it, and newcomers' order. A copy of
    # this simulator with all five agrees with this run within 0.2 %; with any four it does not.
    # The run is also one draw of many: a millisecond of jitter on its arrivals moves its own
    # TBT P99 from -16 to +26 %.
    ("conv", 130, "HH", "ttft_p50"): 0.12,
    ("conv", 130, "HH", "tbt_p99"): 0.12,
    ("conv", 130, "HH", "e2e_p99"): 0.12,
}


def data() -> Path:
    beside = Path(__file__).parents[3] / "shared" / "data"
    return Path(os.environ.get("SPLITWISE_TRACES") or beside)


def runs() -> Iterator[dict[str, str]]:
    results = data() / "splitwisesim" / "results.csv"
    if results.exists():
        with results.open() as lines:
            yield from csv.DictReader(lines)


@dataclass(frozen=True)
class Trace:
    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]


def trace(kind: str, rate: str) -> Trace:
    path = data() / "splitwisesim" / f"rr_{kind}_{rate}_2min.csv"
    rows = np.genfromtxt(path, delimiter=",", names=True)
    return Trace(
        rows["arrival_timestamp"],
        rows["prompt_size"].astype(np.int64),
        rows["token_size"].astype(np.int64),
    )


def group(model: str, machine: str, count: int, pool: Pool) -> MachineGroup:
    times = load_profile("published-2024", machine, model)
    return MachineGroup(f"{machine}-{pool.name.lower()}", times, pool, count)


def cluster(model: str, kind: str, system: str) -> list[MachineGroup]:
    if system in MIXED:
        return [group(model, *MIXED[system], Pool.MIXED)]
    prompt, prompts, token, tokens = SPLIT[kind, system]
    return [
        group(model, prompt, prompts, Pool.PROMPT),
        group(model, token, tokens, Pool.TOKEN),
    ]


@pytest.mark.skipif(
    not any(runs()), reason="no splitwisesim/results.csv; set SPLITWISE_TRACES to its folder"
)
def test_52_runs_agree() -> None:
    checked = 0
    wrong = []
    for run in runs():
        options = PUBLISHED_2024
        if run["system"].endswith("-orca"):
            options = replace(options, batch_tokens=2**16)  # request batches, no token budget
        result = simulate(
            trace(run["kind"], run["rate"]),
            cluster(run["model"], run["kind"], run["system"]),
            options,
        )
        assert int((result.status == 0).sum()) == int(run["completed"])
        # Its TBT divides by all tokens, ours by the gaps between them.
        tbt_s = (result.finish_s - result.first_token_s) / result.output_tokens
        values = {"ttft": result.ttft_s, "tbt": tbt_s, "e2e": result.e2e_s}
        rate = int(run["rate"])
        for figure in FIGURES:
            name, percentile = figure.split("_p")
            ours = np.percentile(values[name], int(percentile))
            bound = 0.10 if rate >= SATURATED_RATE else 0.0001
            bound = KNOWN.get((run["kind"], rate, run["system"], figure), bound)
            off = ours / float(run[figure]) - 1
            checked += 1
            if abs(off) > bound:
                wrong.append(f"{run['kind']} {rate} {run['system']} {figure}: {off:+.1%}")
    assert checked == 52 * len(FIGURES)
    assert not wrong, "\n".join(wrong)
