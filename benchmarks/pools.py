"""Pools under a load that swings: role changes against static splits, and against the simulator.

Four machines of fixed times (the null engine) serve a trace that is prompt-heavy, then token-heavy,
then prompt-heavy again, as real processes. A static split keeps its pools whatever comes.

Then everything four times slower, once more with role changes, and the same trace through the
simulator, by the server's rules for a cache that grows and with the times that this server is
measured to take: does it change the same roles in the same order? (``role_changes``)

An objective is met by a request whose time to first token is at most ``TTFT_LIMIT`` times, and
whose mean time between tokens at most ``TBT_LIMIT`` times, that of the request alone.

    python benchmarks/pools.py [--seeds 1 2] [--seconds 30] [--only static simulator]

The comparison that is recorded had ``--seeds 1 2 3 --seconds 10``: of longer traces each variant is
another story.
"""

import argparse
import asyncio
import json
import os
import re
import secrets
import sys
import time
import urllib.request
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TextIO

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from common import environment, percentile, read_result, write_result
from front_client import Connection, Exchange, post
from role_changes import (
    CACHE_TOKENS,
    QUEUE_THRESHOLD,
    TOKEN_BYTES,
    Measured,
    RoleChange,
    among_variants,
    compare,
    simulated_changes,
    variants,
)
from splitwise.gateway.admin import ADMIN_KEY_VARIABLE
from splitwise.launch.local_server import running_server
from splitwise.scheduling.pool import Pool
from splitwise.workload import Requests

PROMPT_TOKEN_S: Final = 1e-4
ITERATION_S: Final = 0.05
SLOWER: Final = 4.0
TTFT_LIMIT: Final = 5.0
TBT_LIMIT: Final = 3.0
CLUSTERS: Final = {
    "3P + 1T": (3, 1, False),
    "2P + 2T": (2, 2, False),
    "1P + 3T": (1, 3, False),
    "2P + 2T, role changes": (2, 2, True),
}


@dataclass(frozen=True)
class Phase:
    """A stretch of the trace: equal requests at random times."""

    prompt_tokens: int
    output_tokens: int
    per_s: float


PROMPT_HEAVY: Final = Phase(4000, 4, 6.0)
TOKEN_HEAVY: Final = Phase(2000, 200, 2.4)


@dataclass
class Served:
    """What one cluster made of the trace."""

    exchanges: list[Exchange]
    homes: list[Pool]
    changes: list[RoleChange]


@dataclass
class Lines:
    """Standard error, with the time at which each line was written."""

    target: TextIO
    at_s: list[tuple[float, str]] = field(default_factory=list)

    def write(self, line: str) -> int:
        self.at_s.append((time.perf_counter(), line))
        return self.target.write(line) if "WARNING" in line else len(line)

    def flush(self) -> None:
        self.target.flush()


def swinging(seed: int, seconds: float, slower: float = 1.0) -> Requests:
    """Prompt-heavy, token-heavy, prompt-heavy: ``seconds`` each; one arrival at a random time of
    each gap. All times are then multiplied by ``slower``."""
    draw = np.random.default_rng(seed)
    rows: list[tuple[float, int, int]] = []
    for number, phase in enumerate((PROMPT_HEAVY, TOKEN_HEAVY, PROMPT_HEAVY)):
        count = int(seconds * phase.per_s)
        ticks = np.arange(count) + draw.uniform(0, 1, count)
        at_s = number * seconds + ticks / phase.per_s
        rows += [(one, phase.prompt_tokens, phase.output_tokens) for one in at_s.tolist()]
    arrival_s, prompts, outputs = zip(*rows, strict=True)
    return Requests(np.array(arrival_s) * slower, np.array(prompts), np.array(outputs))


def serve(
    trace: Requests, prompt: int, token: int, change_roles: bool, slower: float = 1.0
) -> Served:
    """Run the trace through a server of these machines."""
    os.environ[ADMIN_KEY_VARIABLE] = secrets.token_hex()
    arguments = [
        *("--engine=null", f"--prompt={prompt}", f"--token={token}"),
        f"--null-prompt-token-s={PROMPT_TOKEN_S * slower}",
        f"--null-iteration-s={ITERATION_S * slower}",
        f"--kv-cache-gib={(CACHE_TOKENS * TOKEN_BYTES + 1) / 2**30}",
        f"--queue-threshold={QUEUE_THRESHOLD}",
        "--change-roles" if change_roles else "--no-change-roles",
    ]
    lines = Lines(sys.stderr)
    with redirect_stderr(lines), running_server(*arguments) as url:
        machines = machines_of(url)
        began_s = time.perf_counter() + 0.5
        exchanges = uvloop.run(replay(int(url.rsplit(":", 1)[1]), trace, began_s))
    names = [machine["machine_id"] for machine in machines]
    assert {machine["kv_capacity_tokens"] for machine in machines} == {CACHE_TOKENS}
    return Served(
        exchanges,
        [Pool[machine["home"].upper()] for machine in machines],
        changes_said(lines, names, began_s),
    )


def machines_of(url: str) -> list[dict[str, Any]]:
    """The machines in the order in which they joined, by which the scheduler ranks equals."""
    key = os.environ[ADMIN_KEY_VARIABLE]
    request = urllib.request.Request(
        f"{url}/admin/pools", headers={"Authorization": f"Bearer {key}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        machines: list[dict[str, Any]] = json.load(answer)["machines"]
    return machines


async def replay(port: int, trace: Requests, began_s: float) -> list[Exchange]:
    """Send each request at its time, whatever the server does."""

    async def one(number: int) -> Exchange:
        prompt, output = int(trace.prompt_tokens[number]), int(trace.output_tokens[number])
        body = {"prompt": [4 + number % 200] * prompt, "max_tokens": output, "stream": True}
        request = post("/v1/completions", {**body, "temperature": 0, "ignore_eos": True})
        due_s = began_s + float(trace.arrival_s[number])
        await asyncio.sleep(due_s - time.perf_counter())
        connection = await Connection.open(port)  # a kept one may have been idle for too long
        try:
            return await connection.exchange(request, due_s)
        finally:
            connection.close()

    return await asyncio.gather(*map(one, range(len(trace))))


def changes_said(lines: Lines, names: list[str], began_s: float) -> list[RoleChange]:
    """The role changes in a server's log."""
    pattern = re.compile(r"machine (\S+): \w+ pool -> (\w+) pool")
    found = [(at_s, pattern.search(line)) for at_s, line in lines.at_s]
    return [
        RoleChange(at_s - began_s, names.index(match[1]), match[2])
        for at_s, match in found
        if match
    ]


def measure(slower: float) -> Measured:
    """Means, for they add up. Prompts that all come at once end one prompt's time after the other.
    An output that is longer by so many tokens takes as many iterations longer."""
    sizes, at_once = sorted({phase.prompt_tokens for phase in (PROMPT_HEAVY, TOKEN_HEAVY)}), 9
    prompt_s = []
    for size in sizes:
        burst = Requests(np.zeros(at_once), np.full(at_once, size), np.full(at_once, 2))
        ends_s = sorted(one.first_s for one in serve(burst, 1, 1, False, slower).exchanges)
        prompt_s.append((ends_s[-1] - ends_s[0]) / (at_once - 1))
    one_by_one = Requests(np.array([0.0, 2.0]), np.array([100, 100]), np.array([2, 102]))
    short, long = serve(one_by_one, 1, 1, False, slower).exchanges
    return Measured(sizes, prompt_s, (long.took_s - short.took_s) / 100)


def figures(trace: Requests, served: Served, seconds: float) -> dict[str, Any]:
    """Attainment of the whole trace and of its phases, and what was usual."""
    prompt, output = trace.prompt_tokens, trace.output_tokens
    first_s = np.array([one.first_took_s for one in served.exchanges])
    tbt_s = np.array([one.end_s - one.first_s for one in served.exchanges]) / (output - 1)
    is_met = (first_s <= TTFT_LIMIT * PROMPT_TOKEN_S * prompt) & (tbt_s <= TBT_LIMIT * ITERATION_S)
    phase = np.minimum(trace.arrival_s // seconds, 2).astype(int)
    span_s = max(one.end_s for one in served.exchanges) - served.exchanges[0].due_s
    return {
        "attainment": float(is_met.mean()),
        "attainment_by_phase": [float(is_met[phase == number].mean()) for number in range(3)],
        "ttft_p50_p99_s": [percentile(first_s.tolist(), p) for p in (50, 99)],
        "tbt_p50_p99_s": [percentile(tbt_s.tolist(), p) for p in (50, 99)],
        "tokens_per_s": float((prompt + output).sum() / span_s),
        "role_changes": len(served.changes),
    }


def against_static(seed: int, seconds: float) -> dict[str, Any]:
    """One trace through every cluster."""
    trace = swinging(seed, seconds)
    clusters = {
        name: figures(trace, serve(trace, *cluster), seconds) for name, cluster in CLUSTERS.items()
    }
    record = {"seed": seed, "requests": len(trace), "clusters": clusters}
    show_clusters(record)
    return record


def against_simulator(seed: int, seconds: float) -> dict[str, Any]:
    """One slow trace through a cluster that changes roles, and through the simulator."""
    trace = swinging(seed, seconds, SLOWER)
    measured = measure(SLOWER)
    served = serve(trace, 2, 2, True, SLOWER)
    machines = [measured] * len(served.homes)
    found = compare(served.changes, simulated_changes(trace, served.homes, machines))
    found |= among_variants(served.changes, variants(trace, served.homes, measured))
    record = {"seed": seed, "requests": len(trace), "measured": asdict(measured), **found}
    said = {key: value for key, value in record.items() if not key.endswith("changes")}
    Console().print(f"role changes against the simulator's: {said}")
    return record


def show_clusters(record: dict[str, Any]) -> None:
    table = Table(title=f"Swinging load, seed {record['seed']}, {record['requests']} requests")
    for column in ("cluster", "SLO met", "by phase", "TTFT p50/p99 s", "TBT p50/p99 s", "changes"):
        table.add_column(column, justify="right")
    for name, one in record["clusters"].items():
        table.add_row(
            *(name, f"{one['attainment']:.1%}"),
            " ".join(f"{share:.0%}" for share in one["attainment_by_phase"]),
            "/".join(f"{value:.2f}" for value in one["ttft_p50_p99_s"]),
            "/".join(f"{value:.3f}" for value in one["tbt_p50_p99_s"]),
            str(one["role_changes"]),
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=30.0, help="Of each of three phases.")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    record = read_result("pools")
    for name in options.only:
        runs = [CASES[name](seed, options.seconds) for seed in options.seeds]
        where = environment() | {"seconds_a_phase": options.seconds}
        record[name] = {"environment": where, "runs": runs}
        write_result("pools", record)


CASES: Final = {"static": against_static, "simulator": against_simulator}


if __name__ == "__main__":
    main()
