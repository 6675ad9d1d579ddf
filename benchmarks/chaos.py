"""Chaos: workers are killed, frozen, cut off and made to fail, transfers spoilt, while clients
stream.

Every answer must be what it is without harm, whole and with no token twice, and in the end every
block of every cache must be free. Exit code 1 where that does not hold.

    python benchmarks/chaos.py [--only null real] [--requests N] [--every-s S] [--launcher ray]

``null``: 16 workers without a model, whose every token is known beforehand. ``real``: 4 workers of
the default model; what they say undisturbed is taken from one machine first. ``vllm``, only where
it is asked for: the same over vLLM, which must be installed. A prompt and a
token machine are the gateway's own. Requests have seeds or are greedy, and some are too long for
one piece. Workers log to a file that is named. With ``--launcher ray`` a Ray cluster of this host
starts the workers; they are killed, with or without their actors, frozen, or made to fail.
"""

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import IO, Any

import httpx
from rich.console import Console
from rich.table import Table

from chaos_cluster import HarmedCluster, chaos_cluster
from chaos_outages import Outages, watched_outages
from chaos_ray import ray_chaos_cluster
from common import environment, percentile, read_result, write_result
from front_client import Connection, Exchange, post
from splitwise.cli.progress import progress_bar
from splitwise.engine.model_files import read_model_info, read_stop_token_ids
from splitwise.engine.null.engine import null_model
from splitwise.engine.null.tokens import continuation, words_of
from splitwise.engine.sampling import SamplingParams
from splitwise.launch.local_server import running_server

PATH = "/v1/completions"
IDLE_LIMIT_S = 120.0
_TOKENS = re.compile(rb'"token_ids":\[([\d,]*)\]')
_GAUGES = re.compile(r"^splitwise:(?:num_requests|kv_cache)\w*\{(.+)\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Case:
    pools: dict[str, int]
    arguments: list[str]
    serve_arguments: list[str]
    requests: int
    clients: int
    every_s: float
    """Between two harms. A worker of the model takes 5 s of a core to start, and 15 s with vLLM:
    with a harm every two seconds these two cores would do little else."""
    longest_harm_s: float
    prompts: int
    """Different ones; each is sent again and again."""
    token_ids: tuple[int, int]
    prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]


CASES = {
    "null": Case(
        pools={"prompt": 6, "token": 8, "mixed": 2},
        arguments=["--engine=null", "--null-iteration-s=0.01", "--null-prompt-token-s=0.00005"],
        serve_arguments=["--queue-threshold=2048"],
        requests=20_000,
        clients=96,
        every_s=2.0,
        longest_harm_s=12.0,
        prompts=200,
        token_ids=(4, 500),
        prompt_tokens=(4, 800),
        output_tokens=(1, 200),
    ),
    "vllm": Case(
        pools={"prompt": 2, "token": 2},
        arguments=[
            "--engine=vllm",
            "--dtype=float32",
            "--kv-cache-gib=0.5",
            "--vllm-args=--enforce-eager --max-model-len 2048 --max-num-batched-tokens 256",
        ],
        serve_arguments=["--max-wait-for-machine-s=300"],
        requests=200,
        clients=6,
        every_s=15.0,
        longest_harm_s=12.0,
        prompts=20,
        token_ids=(1000, 20000),
        prompt_tokens=(16, 600),
        output_tokens=(4, 100),
    ),
    "real": Case(
        pools={"prompt": 2, "token": 2},
        arguments=["--kv-cache-gib=0.5"],
        serve_arguments=["--max-wait-for-machine-s=120"],
        requests=200,
        clients=6,
        every_s=4.0,
        longest_harm_s=12.0,
        prompts=20,
        token_ids=(1000, 20000),
        prompt_tokens=(16, 200),
        output_tokens=(4, 40),
    ),
}


def bodies_of(case: Case) -> list[dict[str, Any]]:
    """Greedy requests and, every third, sampled ones."""
    draw = random.Random(3)
    return [
        {
            "prompt": [
                draw.randrange(*case.token_ids) for _ in range(draw.randint(*case.prompt_tokens))
            ],
            "max_tokens": draw.randint(*case.output_tokens),
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
            **({"temperature": 0.8, "seed": number} if number % 3 == 2 else {"temperature": 0}),
        }
        for number in range(case.prompts)
    ]


def expected_of(name: str, case: Case, bodies: list[dict[str, Any]]) -> list[list[int]]:
    """The tokens of each, undisturbed."""
    if name == "null":
        folder = null_model()
        words = words_of(read_model_info(folder).vocab_size, read_stop_token_ids(folder))
        return [
            continuation(
                body["prompt"],
                body["max_tokens"],
                SamplingParams(temperature=body["temperature"], seed=body.get("seed", 0)),
                words,
            )
            for body in bodies
        ]
    with running_server("--mixed=1", "--threads=2", *case.arguments) as url:
        answers = [httpx.post(url + PATH, json=body, timeout=300).content for body in bodies]
    return [tokens_in(answer) for answer in answers]


def tokens_in(answer: bytes) -> list[int]:
    return [int(one) for found in _TOKENS.findall(answer) for one in found.split(b",") if one]


@dataclass
class Outcome:
    """What clients saw."""

    exchanges: list[Exchange]
    wrong: int
    doubled: int
    lost: "Counter[str]"
    took_s: float


async def load(
    cluster: HarmedCluster, case: Case, bodies: list[dict[str, Any]], expected: list[list[int]]
) -> Outcome:
    """``case.requests`` streams, ``case.clients`` at a time, each checked."""
    requests = [post(PATH, body) for body in bodies]
    outcome = Outcome([], 0, 0, Counter(), 0.0)
    left = iter(range(case.requests))
    begun_s = time.perf_counter()
    with progress_bar() as tell:

        async def client() -> None:
            connection = await Connection.open(cluster.port)
            for number in left:
                which = number % len(requests)
                try:
                    exchange = await connection.exchange(requests[which])
                    judge(exchange, expected[which], outcome)
                except (RuntimeError, TimeoutError, OSError, EOFError) as error:
                    outcome.lost[f"{type(error).__name__}: {error}"] += 1
                    connection.close()
                    connection = await Connection.open(cluster.port)
                tell("requests", number, case.requests)
            connection.close()

        await asyncio.gather(*(client() for _ in range(case.clients)))
    outcome.took_s = time.perf_counter() - begun_s
    return outcome


def judge(exchange: Exchange, expected: list[int], outcome: Outcome) -> None:
    outcome.exchanges.append(exchange)
    said = tokens_in(exchange.answer)
    if b"data: [DONE]" not in exchange.answer:
        outcome.lost[exchange.answer[-300:].decode(errors="replace")] += 1
    elif len(said) > len(expected):
        outcome.doubled += 1
    elif said != expected:
        outcome.wrong += 1


async def wait_until_idle(cluster: HarmedCluster) -> dict[str, float]:
    """The gauges that are not 0 when all workers report again, or when the time is over."""
    deadline_s = time.monotonic() + IDLE_LIMIT_S
    async with httpx.AsyncClient(timeout=30) as client:
        while True:
            text = (await client.get(f"http://127.0.0.1:{cluster.port}/metrics")).text
            gauges = {labels: float(value) for labels, value in _GAUGES.findall(text)}
            busy = {labels: value for labels, value in gauges.items() if value}
            missing = [w.name for w in cluster.workers if f'"{w.name}"' not in text]
            if not busy and not missing:
                return {}
            if time.monotonic() > deadline_s:
                return busy | {f"{name} does not report": 1.0 for name in missing}
            await asyncio.sleep(1.0)


async def run_case(name: str, case: Case, on_ray: bool, log: IO[bytes]) -> dict[str, Any]:
    bodies = bodies_of(case)
    expected = expected_of(name, case, bodies)
    new_cluster = ray_chaos_cluster if on_ray else chaos_cluster
    arguments = case.serve_arguments
    async with new_cluster(case.pools, case.arguments, arguments, log) as cluster:
        chaos = asyncio.create_task(cluster.harm_for_ever(case.every_s, case.longest_harm_s))
        async with watched_outages(cluster.port) as outages:
            outcome = await load(cluster, case, bodies, expected)
        chaos.cancel()
        await asyncio.gather(chaos, return_exceptions=True)
        blocked = await wait_until_idle(cluster)
    pauses = [exchange.longest_pause_s for exchange in outcome.exchanges]
    served = [one.longest_pause_s - _outage_s(one, outages) for one in outcome.exchanges]
    return {
        "workers": sum(case.pools.values()),
        "requests": case.requests,
        "seconds": outcome.took_s,
        "harm_every_s": case.every_s,
        "harms": dict(cluster.harms),
        "lost": sum(outcome.lost.values()),
        "reasons": dict(outcome.lost.most_common(5)),
        "with_tokens_twice": outcome.doubled,
        "with_other_tokens": outcome.wrong,
        "caches_not_free": blocked,
        "longest_pause_s": max(pauses, default=0.0),
        "pause_p99_s": percentile(pauses, 99) if pauses else 0.0,
        "pause_p50_s": percentile(pauses, 50) if pauses else 0.0,
        "longest_outage_s": outages.longest_s,
        "longest_pause_without_outages_s": max(served, default=0.0),
    }


def _outage_s(exchange: Exchange, outages: Outages) -> float:
    """The part of its longest pause in which no machine took requests."""
    until_s = exchange.paused_until_s
    return outages.overlap_s(until_s - exchange.longest_pause_s, until_s)


def is_clean(figures: dict[str, Any]) -> bool:
    faults = ("lost", "with_tokens_twice", "with_other_tokens", "caches_not_free")
    return not any(figures[fault] for fault in faults)


def show(name: str, figures: dict[str, Any]) -> None:
    table = Table("figure", "value", title=name)
    for figure, value in figures.items():
        table.add_row(figure, f"{value:.3f}" if isinstance(value, float) else str(value))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=["null", "real"])
    parser.add_argument("--requests", type=int, help="instead of the case's own number")
    parser.add_argument("--every-s", type=float, help="between two harms, instead of the case's")
    parser.add_argument("--launcher", choices=("local", "ray"), default="local")
    parser.add_argument("--json", action="store_true", help="print figures, keep no record")
    options = parser.parse_args()
    record: dict[str, Any] = {}
    on_ray = options.launcher == "ray"
    for name in options.only:
        case, title = CASES[name], f"{name} on Ray" if on_ray else name
        given = {"requests": options.requests, "every_s": options.every_s}
        case = replace(case, **{field: value for field, value in given.items() if value})
        with tempfile.NamedTemporaryFile(
            prefix=f"chaos-{name}-", suffix=".log", delete=False
        ) as log:
            print(f"{name}: logging to {log.name}", file=sys.stderr)
            run = run_case(name, case, on_ray, log)
            record[title] = asyncio.run(run)
        if not options.json:
            show(title, record[title])
        record[title]["environment"] = environment()
    if options.json:
        print(json.dumps(record))
    else:
        write_result("chaos", read_result("chaos") | record)
    if not all(map(is_clean, record.values())):
        sys.exit(1)


if __name__ == "__main__":
    main()
