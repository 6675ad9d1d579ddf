"""What ``vllm_handover`` measured, as figures, tables, and goals reached or missed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vllm_systems import CHUNK_TOKENS, OUR_MIXED, OUR_SPLIT, PLAIN, THEIR_SPLIT


@dataclass
class Run:
    """One request on one system; times in seconds after it was sent."""

    prompt_tokens: int
    known_s: float
    """When the front had the first token."""
    ttft_s: float
    second_s: float
    itl_s: float
    """Mean of the gaps after the second token."""
    e2e_s: float
    bytes: float = 0.0
    """Of a cache that was transferred by us."""
    early_bytes: float = 0.0

    @property
    def handover_s(self) -> float:
        return self.second_s - self.known_s - self.itl_s


Runs = dict[str, list[Run]]
"""By system. At one place in each list is the same prompt."""


def figures(values: Sequence[float], scale: float = 1e3) -> dict[str, float]:
    """Median and mean with intervals that hold them with 95 % confidence (bootstrap)."""
    given = np.asarray(values) * scale
    drawn = np.random.default_rng(0).choice(given, (2000, len(given)))
    record: dict[str, float] = {}
    statistic: Callable[..., Any]
    for name, statistic in (("median", np.median), ("mean", np.mean)):
        low, high = np.percentile(statistic(drawn, axis=1), (2.5, 97.5))
        record |= {name: float(statistic(given)), f"{name}_low": float(low)}
        record[f"{name}_high"] = float(high)
    return record


def summarise(runs: Runs) -> dict[str, Any]:
    """Figures of each system in milliseconds, and what is added to a run on one engine."""
    rows: dict[str, Any] = {}
    for name, own in runs.items():
        rows[name] = {
            "ttft_ms": figures([run.ttft_s for run in own]),
            "handover_ms": figures([run.handover_s for run in own]),
            "itl_ms": figures([run.itl_s for run in own]),
            "e2e_ms": figures([run.e2e_s for run in own]),
        }
        if moved := sum(run.bytes for run in own):
            rows[name]["early_bytes_percent"] = 100 * sum(run.early_bytes for run in own) / moved
    return rows


def added(runs: Runs, split: str, alone: str) -> dict[str, Any]:
    """What a split adds to the same prompts on one engine; also to the fastest run of a size, which
    others of the host's users disturbed least."""
    pairs = list(zip(runs[split], runs[alone], strict=True))
    sizes = {run.prompt_tokens for run in runs[alone]}
    fastest = [
        min(run.e2e_s for run in of_size(runs, size)[split])
        / min(run.e2e_s for run in of_size(runs, size)[alone])
        for size in sizes
    ]
    return {
        "fastest_e2e_percent": 100 * (float(np.mean(fastest)) - 1),
        "ttft_ms": figures([s.ttft_s - a.ttft_s for s, a in pairs]),
        "second_token_ms": figures([s.second_s - a.second_s for s, a in pairs]),
        "e2e_ms": figures([s.e2e_s - a.e2e_s for s, a in pairs]),
        "e2e_percent": figures([s.e2e_s / a.e2e_s - 1 for s, a in pairs], 100),
    }


COMPARED = ((OUR_SPLIT, OUR_MIXED), (OUR_SPLIT, PLAIN), (THEIR_SPLIT, PLAIN), (OUR_MIXED, PLAIN))


def of_size(runs: Runs, size: int | None) -> Runs:
    """The runs with prompts of ``size`` tokens; None: all."""
    return {
        name: [run for run in own if size in (None, run.prompt_tokens)]
        for name, own in runs.items()
    }


def by_size(runs: Runs, sizes: Sequence[int]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for size in (*sizes, None):
        of_it = of_size(runs, size)
        record[str(size or "all")] = {
            "systems": summarise(of_it),
            "added": {f"{s} over {a}": added(of_it, s, a) for s, a in COMPARED},
        }
    return record


def goals(record: dict[str, Any], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """What the split should reach, and what it did."""
    alone = record["one_at_a_time"]
    systems = alone["all"]["systems"]
    ours, theirs = (systems[n]["handover_ms"]["median"] for n in (OUR_SPLIT, THEIR_SPLIT))
    rows: list[dict[str, Any]] = [_goal("hand-over / vLLM's own", ours / theirs, 0.25)]
    for base in (OUR_MIXED, PLAIN):
        more = alone["all"]["added"][f"{OUR_SPLIT} over {base}"]
        name = f"added E2E over {base}, percent"
        rows.append(_goal(f"{name}, mean", more["e2e_percent"]["mean"], 0.8))
        rows.append(_goal(f"{name}, fastest runs", more["fastest_e2e_percent"], 0.8))
    early = [
        alone[str(size)]["systems"][OUR_SPLIT].get("early_bytes_percent", 0.0)
        for size in sizes
        if size >= 2 * CHUNK_TOKENS
    ]
    if early:
        rows.append(_goal("late bytes of prompts of two chunks, percent", 100 - min(early), 10))
    for clients, front in record["front_cpu_us"].items():
        for figure in ("request_us", "token_us"):
            ratio = front[OUR_SPLIT][figure] / front[PLAIN][figure]
            rows.append(_goal(f"front's CPU at {clients}, {figure} / vLLM's", ratio, 1.0))
    return rows


def _goal(name: str, value: float, below: float) -> dict[str, Any]:
    return {"goal": name, "value": value, "below": below, "met": value < below}


def show(console: Console, record: dict[str, Any], sizes: Sequence[int]) -> None:
    def shown(figure: dict[str, float]) -> str:
        return f"{figure['median']:.1f}"

    for title, part in (
        *((f"{size} tokens, one at a time", record["one_at_a_time"][str(size)]) for size in sizes),
        ("at once", {"systems": record["at_once"]}),
    ):
        names = ("ttft_ms", "handover_ms", "itl_ms", "e2e_ms")
        table = Table("", *names, "early bytes", title=f"{title}: medians")
        for name, row in part["systems"].items():
            early = row.get("early_bytes_percent")
            early_shown = "" if early is None else f"{early:.1f} %"
            table.add_row(name, *(shown(row[figure]) for figure in names), early_shown)
        console.print(table)
    columns = ("median ms", "median %", "mean %", "with 95 % confidence", "fastest %")
    table = Table("added E2E, all sizes", *columns)
    for name, row in record["one_at_a_time"]["all"]["added"].items():
        percent = row["e2e_percent"]
        between = f"{percent['mean_low']:.2f} to {percent['mean_high']:.2f}"
        fastest = f"{row['fastest_e2e_percent']:.2f}"
        medians = (shown(row["e2e_ms"]), f"{percent['median']:.2f}")
        table.add_row(name, *medians, f"{percent['mean']:.2f}", between, fastest)
    console.print(table)
    table = Table("front's CPU", "clients", "us a request", "us a token")
    for clients, fronts in record["front_cpu_us"].items():
        for name, row in fronts.items():
            table.add_row(name, clients, *(f"{row[f]:.0f}" for f in ("request_us", "token_us")))
    console.print(table)
    table = Table("goal", "value", "below", "")
    for goal in record["goals"]:
        met = "met" if goal["met"] else "missed"
        table.add_row(goal["goal"], f"{goal['value']:.2f}", f"{goal['below']:g}", met)
    console.print(table)
