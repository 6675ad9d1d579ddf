"""The paper's point on two cores: a prompt and a token machine against two mixed machines.

Conversation-like requests arrive at random (Poisson) at several rates, the highest near what two
mixed machines can carry, which is measured first by keeping them busy. Both clusters get the same
requests at the same times. Reported, whatever it is: TTFT, TBT and E2E percentiles, and
throughput.
"""

import argparse
import asyncio
import time

import numpy as np
from rich.console import Console
from rich.table import Table

import client
import workloads
from common import environment, write_result
from splitwise.launch.local_server import running_server

CLUSTERS = {"2 mixed": ["--mixed=2"], "1 prompt + 1 token": ["--prompt=1", "--token=1"]}
PERCENTILES = (50, 90, 99)


async def capacity_rps(url: str, requests: list[workloads.Sized], clients: int) -> float:
    """Requests a second with ``clients`` requests always under way."""
    queue = iter(requests)
    start = time.perf_counter()
    async with client.new_client() as http:

        async def one_client() -> None:
            for sized in queue:
                await client.stream_completion(http, url, sized.prompt, sized.output_tokens)

        await asyncio.gather(*(one_client() for _ in range(clients)))
    return len(requests) / (time.perf_counter() - start)


async def open_loop(
    url: str, requests: list[workloads.Sized], arrivals_s: list[float]
) -> tuple[list[client.Timing], float]:
    """Send each request at its time, ready or not; returns timings and the whole duration."""
    start = time.perf_counter()
    async with client.new_client() as http:

        async def one_request(sized: workloads.Sized, at_s: float) -> client.Timing:
            await asyncio.sleep(max(0.0, at_s - (time.perf_counter() - start)))
            return await client.stream_completion(http, url, sized.prompt, sized.output_tokens)

        timings = await asyncio.gather(*map(one_request, requests, arrivals_s))
    return list(timings), time.perf_counter() - start


def percentiles_ms(values_s: list[float]) -> dict[str, float]:
    return {f"p{p}": 1e3 * float(np.percentile(values_s, p)) for p in PERCENTILES}


def summarise(
    requests: list[workloads.Sized], timings: list[client.Timing], duration_s: float
) -> dict[str, object]:
    tokens = sum(sized.output_tokens for sized in requests)
    return {
        "ttft_ms": percentiles_ms([t.ttft_s for t in timings]),
        "tbt_ms": percentiles_ms([gap for t in timings for gap in t.gaps_s]),
        "worst_tbt_of_a_request_ms": percentiles_ms([max(t.gaps_s) for t in timings]),
        "e2e_ms": percentiles_ms([t.end_s for t in timings]),
        "requests_per_s": len(requests) / duration_s,
        "output_tokens_per_s": tokens / duration_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=80, help="requests a rate")
    parser.add_argument("--scale", type=float, default=0.25, help="of the trace's sizes")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.7, 0.9])
    args = parser.parse_args()
    console = Console()
    requests = workloads.draw("conversation", args.requests, args.scale, seed=2)
    gaps = np.random.default_rng(3).exponential(1.0, args.requests)
    rows = []
    with running_server(*CLUSTERS["2 mixed"]) as url:
        asyncio.run(capacity_rps(url, requests[:4], 4))  # Warm up.
        capacity = asyncio.run(capacity_rps(url, requests, 16))
    console.print(f"two mixed machines, kept busy: {capacity:.2f} requests/s")
    for name, arguments in CLUSTERS.items():
        with running_server(*arguments) as url:
            asyncio.run(capacity_rps(url, requests[:4], 4))
            for load in args.loads:
                arrivals = (np.cumsum(gaps) / (capacity * load)).tolist()
                timings, duration_s = asyncio.run(open_loop(url, requests, arrivals))
                row = {"cluster": name, "load": load, "offered_rps": capacity * load}
                rows.append(row | summarise(requests, timings, duration_s))
    console.print(_table(rows))
    write_result(
        "interference",
        {
            "environment": environment(),
            "arguments": vars(args),
            "capacity_of_two_mixed_rps": capacity,
            "rows": rows,
        },
    )


def _table(rows: list[dict]) -> Table:  # type: ignore[type-arg]
    table = Table(title="conversation-like load; milliseconds at p50 / p90 / p99")
    for column in ("load", "cluster", "TTFT", "TBT", "worst TBT", "E2E", "requests/s"):
        table.add_column(column, justify="right")

    def three(figures: dict[str, float]) -> str:
        return " / ".join(f"{figure:.0f}" for figure in figures.values())

    for row in sorted(rows, key=lambda row: row["load"]):
        table.add_row(
            f"{row['load']:.0%}",
            row["cluster"],
            three(row["ttft_ms"]),
            three(row["tbt_ms"]),
            three(row["worst_tbt_of_a_request_ms"]),
            three(row["e2e_ms"]),
            f"{row['requests_per_s']:.2f}",
        )
    return table


if __name__ == "__main__":
    main()
