"""Whether clients that others wrote see what the server says of itself.

Each client sends the same load, one after the other: first to a server with the null engine, whose
times are known, over ``/v1/completions``, then to the default model on one prompt and one token
machine, over ``/v1/chat/completions``. Its report is put beside the difference of ``/metrics``.

    python benchmarks/standard_clients.py [--guidellm PATH] [--aiperf PATH] [--vllm PATH]

A client that is neither given nor on the PATH is left out, by name. The project's own client and
the official ``openai`` one are always there. Exit code 1 if any figure differs by more than 5 %.
"""

import argparse
import asyncio
import dataclasses
import json
import random
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
from rich.console import Console
from rich.table import Table

import client
from client_figures import Figures, Load, compare, observed
from client_programs import PROGRAMS, run_program
from common import environment, write_result
from splitwise.engine.model_files import read_model_info, resolve_model
from splitwise.engine.null.engine import null_model
from splitwise.launch.local_server import running_server

PROMPT_TOKEN_S = 0.001
ITERATION_S = 0.02
NULL_ENGINE = [
    "--engine=null",
    f"--null-prompt-token-s={PROMPT_TOKEN_S}",
    f"--null-iteration-s={ITERATION_S}",
]
CASES = {"null engine, completions": NULL_ENGINE, "default model, chat": []}
Run = Callable[[Load], Awaitable[Figures]]
Stream = Callable[[Load], Awaitable[client.Timing]]


async def own_client(load: Load) -> Figures:
    """``benchmarks/client.py``, which the other benchmarks use: plain prompts of token ids."""
    async with client.new_client() as http:

        async def stream(load: Load) -> client.Timing:
            prompt = _prompt(load)
            return await client.stream_completion(http, load.url, prompt, load.output_tokens)

        return await _closed_loop(load, stream)


async def openai_client(load: Load) -> Figures:
    """The official client; tokens are counted by the usage that comes with each event."""
    settings: dict[str, Any] = {
        "model": load.model,
        "max_tokens": load.output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "extra_body": {"ignore_eos": True},
    }
    async with openai.AsyncOpenAI(base_url=f"{load.url}/v1", api_key="none") as api:

        async def stream(load: Load) -> client.Timing:
            timing, start = client.Timing(), time.perf_counter()
            if load.chat:
                words = random.choices(["one", "two", "three", "four"], k=load.prompt_tokens)
                messages = [{"role": "user", "content": " ".join(words)}]
                events = await api.chat.completions.create(messages=messages, **settings)
            else:
                events = await api.completions.create(prompt=_prompt(load), **settings)
            async for event in events:
                new = event.usage.completion_tokens - len(timing.token_s)
                timing.token_s += [time.perf_counter() - start] * new
            timing.end_s = time.perf_counter() - start
            return timing

        return await _closed_loop(load, stream)


def _prompt(load: Load) -> list[int]:
    """Tokens of the upper half, where vocabularies have words."""
    return random.choices(range(load.vocab_size // 2, load.vocab_size), k=load.prompt_tokens)


async def _closed_loop(load: Load, stream: Stream) -> Figures:
    """``load.concurrency`` requests always under way, until all have been sent."""
    timings: list[client.Timing] = []
    left = iter(range(load.requests))
    start = time.perf_counter()

    async def one_after_another() -> None:
        for _ in left:
            timing = await stream(load)
            timings.append(timing)

    await asyncio.gather(*(one_after_another() for _ in range(load.concurrency)))
    duration_s = time.perf_counter() - start
    gaps = [gap for timing in timings for gap in timing.gaps_s]
    tokens = sum(len(timing.token_s) for timing in timings)
    return Figures(
        len(timings),
        tokens / len(timings),
        sum(timing.ttft_s for timing in timings) / len(timings),
        sum(gaps) / len(gaps),
        sum(timing.end_s for timing in timings) / len(timings),
        tokens / duration_s,
        len(timings) / duration_s,
    )


def found_clients(options: argparse.Namespace) -> tuple[dict[str, Run], dict[str, str]]:
    """What runs, and the reason for each that does not."""
    runs: dict[str, Run] = {"ours": own_client, "openai": openai_client}
    skipped: dict[str, str] = {}
    for name in PROGRAMS:
        given: Path | None = getattr(options, name)
        found = shutil.which(given or name)
        if found is None:
            skipped[name] = f"{given}: no such program" if given else "not on the PATH"
            continue
        runs[name] = _program_run(name, Path(found))
    return runs, skipped


def _program_run(name: str, executable: Path) -> Run:
    return lambda load: run_program(name, executable, load)


async def measure(load: Load, runs: dict[str, Run]) -> dict[str, Any]:
    """Every client's figures beside the server's, after a little load to warm up."""
    await own_client(dataclasses.replace(load, requests=2 * load.concurrency))
    compared = {}
    async with httpx.AsyncClient(timeout=60.0) as http:
        for name, run in runs.items():
            theirs, server = await observed(http, load.url, run(load))
            compared[name] = compare(theirs, server)
    return compared


def run_case(name: str, runs: dict[str, Run], options: argparse.Namespace) -> dict[str, Any]:
    is_null = CASES[name] is NULL_ENGINE
    folder = null_model() if is_null else resolve_model()
    with running_server(*CASES[name]) as url:
        load = Load(
            url,
            folder.name,
            folder.path,
            read_model_info(folder).vocab_size,
            chat=not is_null,
            requests=options.requests if is_null else options.model_requests,
            concurrency=4 if is_null else 2,
            prompt_tokens=100,
            output_tokens=50 if is_null else 32,
        )
        clients = asyncio.run(measure(load, runs))
    shown = {k: v for k, v in dataclasses.asdict(load).items() if k not in ("url", "tokenizer")}
    return {"load": shown, "clients": clients}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in PROGRAMS:
        parser.add_argument(f"--{name}", type=Path, help=f"{name}'s command; default: on the PATH")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--requests", type=int, default=80, help="to the null engine, a client")
    parser.add_argument("--model-requests", type=int, default=24, help="to the model, a client")
    parser.add_argument("--json", action="store_true", help="print the record, not a table")
    options = parser.parse_args()
    runs, skipped = found_clients(options)
    cases = {name: run_case(name, runs, options) for name in options.only}
    record = {"environment": environment(), "skipped": skipped, "cases": cases}
    write_result("standard_clients", record)
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        _show(record)
    rows = [row for case in cases.values() for rows in case["clients"].values() for row in rows]
    sys.exit(0 if all(row["agrees"] for row in rows) else 1)


def _show(record: dict[str, Any]) -> None:
    console = Console()
    for name, case in record["cases"].items():
        table = Table("client", "figure", "its", "the server's", "difference", title=name)
        for who, rows in case["clients"].items():
            for row in rows:
                mark = "" if row["agrees"] else " (!)"
                table.add_row(
                    who,
                    row["figure"],
                    f"{row['client']:,.4g}",
                    f"{row['server']:,.4g}",
                    f"{row['difference_percent']:+.2f} %{mark}",
                )
            table.add_section()
        console.print(table)
    for name, reason in record["skipped"].items():
        console.print(f"{name} was left out: {reason}")


if __name__ == "__main__":
    main()
