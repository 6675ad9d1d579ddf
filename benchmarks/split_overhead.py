"""What the split costs one request: two machines against one, one request at a time.

Three servers stand side by side: one mixed machine; a prompt and a token machine with layer-wise
push; the same pair with the cache sent in one piece after the prompt. Every request goes to each
of them in turn, in changing order, several times; per request and server the fastest run counts,
which leaves the noise of a shared machine out, and requests are compared with themselves.

With ``--device cuda`` all workers share one GPU (CUDA IPC between them) and the model is a Llama of
8B size with random weights.
"""

import argparse
import asyncio
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

import client
import random_llama
import workloads
from common import environment, write_result
from splitwise.launch.local_server import running_server

LAYOUTS = {
    "one machine": ["--mixed=1"],
    "split, layer-wise": ["--prompt=1", "--token=1", "--one-piece-below=0"],
    "split, one piece": ["--prompt=1", "--token=1", "--one-piece-below=1000000"],
}


@dataclass
class Run:
    """One request on one server."""

    ttft_s: float
    second_token_s: float
    e2e_s: float
    visible_s: float
    bytes: float
    early_bytes: float


async def run_once(http: "client.httpx.AsyncClient", url: str, sized: workloads.Sized) -> Run:
    before = await client.read_metrics(http, url)
    timing = await client.stream_completion(http, url, sized.prompt, sized.output_tokens)
    after = await client.read_metrics(http, url)

    def moved(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    return Run(
        timing.ttft_s,
        timing.second_token_s,
        timing.end_s,
        moved("kv_transfer_visible_seconds_sum"),
        moved("kv_transfer_bytes_total"),
        moved("kv_transfer_early_bytes_total"),
    )


async def measure(
    urls: dict[str, str], requests: list[workloads.Sized], repeats: int
) -> list[dict[str, Run]]:
    """For every request the fastest run on each server."""
    best: list[dict[str, Run]] = []
    async with client.new_client() as http:
        for number, sized in enumerate(track(requests, description="requests")):
            runs: dict[str, list[Run]] = {name: [] for name in urls}
            names = list(urls)
            for repeat in range(repeats):
                shift = (number + repeat) % len(names)
                for name in names[shift:] + names[:shift]:
                    runs[name].append(await run_once(http, urls[name], sized))
            best.append({n: min(r, key=lambda run: run.e2e_s) for n, r in runs.items()})
            for name, all_runs in runs.items():
                fastest = min(run.second_token_s for run in all_runs)
                best[-1][name].second_token_s = fastest
    return best


def summarise(best: list[dict[str, Run]]) -> dict[str, dict[str, float]]:
    """Per layout: means over requests, relative to the same request on one machine."""
    rows: dict[str, dict[str, float]] = {}
    for name in best[0]:
        runs = [b[name] for b in best]
        alone = [b["one machine"] for b in best]
        pairs = list(zip(runs, alone, strict=True))
        total = sum(r.bytes for r in runs)
        rows[name] = {
            "mean_e2e_s": statistics.mean(r.e2e_s for r in runs),
            "added_e2e_mean_percent": 100
            * statistics.mean(r.e2e_s / a.e2e_s - 1 for r, a in pairs),
            "added_e2e_total_percent": 100
            * (sum(r.e2e_s for r in runs) / sum(a.e2e_s for a in alone) - 1),
            "added_e2e_median_percent": 100
            * statistics.median(r.e2e_s / a.e2e_s - 1 for r, a in pairs),
            "second_token_ms": 1e3 * statistics.mean(r.second_token_s for r in runs),
            "second_token_added_percent": 100
            * statistics.mean(r.second_token_s / a.second_token_s - 1 for r, a in pairs),
            "visible_transfer_ms": 1e3 * statistics.mean(r.visible_s for r in runs),
            "visible_share_of_e2e_percent": 100
            * statistics.mean(r.visible_s / r.e2e_s for r in runs),
            "early_bytes_percent": 100 * sum(r.early_bytes for r in runs) / total if total else 0.0,
            "transferred_mib": total / 2**20,
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=16, help="requests a workload")
    parser.add_argument("--workloads", nargs="+", default=list(workloads.QUANTILES))
    parser.add_argument("--repeats", type=int, default=3, help="runs a request and server")
    parser.add_argument("--scale", type=float, default=0.25, help="of the traces' sizes")
    parser.add_argument("--transport", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default=None, help="default: the default model")
    args = parser.parse_args()
    console = Console()
    record = {"environment": environment(args.device), "arguments": vars(args), "workloads": {}}
    with ExitStack() as servers:
        common = [f"--transport={args.transport}", f"--device={args.device}"]
        if args.model:
            common.append(args.model)
        elif args.device.startswith("cuda"):
            folder = servers.enter_context(tempfile.TemporaryDirectory())
            common += [str(random_llama.save_folder(Path(folder))), "--load-format=dummy"]
        urls = {
            name: servers.enter_context(running_server(*layout, *common))
            for name, layout in LAYOUTS.items()
        }
        for name in args.workloads:
            requests = workloads.draw(name, args.requests, args.scale, seed=1)
            asyncio.run(measure(urls, requests[:1], 1))  # Warm up.
            rows = summarise(asyncio.run(measure(urls, requests, args.repeats)))
            record["workloads"][name] = rows
            console.print(_table(name, rows))
    write_result(f"split_overhead_{args.transport}_{args.device}", record)


def _table(name: str, rows: dict[str, dict[str, float]]) -> Table:
    table = Table(title=f"{name}-like requests, one at a time")
    table.add_column("")
    for layout in rows:
        table.add_column(layout, justify="right")
    for figure in next(iter(rows.values())):
        table.add_row(figure, *(f"{row[figure]:.2f}" for row in rows.values()))
    return table


if __name__ == "__main__":
    main()
