"""The front alone: gateway and cluster scheduler over machines without a model.

One prompt and one token machine run the null engine, with real processes, HTTP, control messages
and transfers. What a request takes beyond the engine's own fixed times is what the system adds.
All of it shares the cores of one host with the client: figures of CPU time are the front's own,
those of a rate are the whole host's.

    python benchmarks/gateway.py [--only CASE ...] [--router /path/to/vllm-router]

The case ``mock_machines`` leaves engine and transfer out, too. ``--router`` adds vllm-router to it,
before a prompt and a token server that answer at once.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

import gateway_mock
import gateway_peer
from common import environment, milliseconds, read_result, write_result
from front_client import Exchange, closed_loop, open_loop, post
from processes import children, cpu_s, resident_mib
from scheduler_load import measure_joins, measure_scheduler
from splitwise.engine.model_files import read_model_info, read_stop_token_ids
from splitwise.engine.null.engine import null_model
from splitwise.engine.null.tokens import continuation, words_of
from splitwise.engine.sampling import SamplingParams
from splitwise.gateway.text.codec import TextCodec
from splitwise.launch.local_server import running_server

PATH = "/v1/completions"
PROMPT = list(range(4, 68))
CLIENTS = 64
SHORT = post(PATH, {"prompt": PROMPT, "max_tokens": 2, "temperature": 0})
"""A split request of the least output: a first token here, a second there."""
STREAMED_TOKENS = 128
STREAM_ITERATION_S = 0.02
LONG_ITERATION_S = 0.1


@dataclass
class Front:
    """A running server: its port and processes."""

    port: int
    gateway: int
    workers: list[int]


@contextmanager
def front(prompt_token_s: float = 0.0, iteration_s: float = 0.0) -> Iterator[Front]:
    """A server of one prompt and one token machine with these engine times.

    They keep their roles: each request is split, whatever the load.
    """
    before = set(children(os.getpid()))
    times = [f"--null-prompt-token-s={prompt_token_s}", f"--null-iteration-s={iteration_s}"]
    limits = [
        "--batch-requests=1024",
        "--max-waiting-requests=4096",
        "--no-change-roles",
        f"--queue-threshold={10**9}",
    ]
    with running_server("--engine=null", *times, *limits) as url:
        (gateway,) = set(children(os.getpid())) - before
        yield Front(int(url.rsplit(":", 1)[1]), gateway, children(gateway))


def one_client(options: argparse.Namespace) -> dict[str, Any]:
    """Added time with one client: at no engine time, and beside an engine that takes its time."""
    with front() as server:
        uvloop.run(closed_loop(server.port, [SHORT], 1, 200))
        bare = [e for _, e in uvloop.run(closed_loop(server.port, [SHORT], 1, options.requests))]
    prompt_token_s, iteration_s, tokens = 50e-6, 5e-3, 8
    prompt_s = len(PROMPT) * prompt_token_s
    body = {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "stream": True}
    with front(prompt_token_s, iteration_s) as server:
        requests = [post(PATH, body)]
        uvloop.run(closed_loop(server.port, requests, 1, 20))
        timed = [e for _, e in uvloop.run(closed_loop(server.port, requests, 1, 200))]
    whole_s = prompt_s + (tokens - 1) * iteration_s
    return {
        "added_two_tokens": milliseconds([e.took_s for e in bare]),
        "added_to_first_token": milliseconds([e.first_took_s - prompt_s for e in timed]),
        f"added_to_{tokens}_tokens_streamed": milliseconds([e.took_s - whole_s for e in timed]),
    }


def rate(options: argparse.Namespace) -> dict[str, Any]:
    """Requests a second, split and not streamed, then the added time at half that rate."""
    with front() as server:
        uvloop.run(closed_loop(server.port, [SHORT], CLIENTS, options.requests // 4))
        pids = {"gateway": server.gateway}
        pids |= dict(zip(("prompt_worker", "token_worker"), server.workers, strict=True))
        before = {name: cpu_s(pid) for name, pid in pids.items()}
        client_s = -cpu_s(os.getpid())
        done = uvloop.run(closed_loop(server.port, [SHORT], CLIENTS, options.requests))
        client_s += cpu_s(os.getpid())
        used_us = {
            name: (cpu_s(pid) - before[name]) / options.requests * 1e6 for name, pid in pids.items()
        }
        per_s = len(done) / span_s([e for _, e in done])
        half = uvloop.run(open_loop(server.port, SHORT, per_s / 2, options.seconds))
    used_us["client"] = client_s / options.requests * 1e6
    return {
        "clients": CLIENTS,
        "requests_per_s": per_s,
        "took": milliseconds([e.took_s for _, e in done]),
        "cpu_us_per_request": used_us,
        "requests_per_s_of_one_gateway_core": 1e6 / used_us["gateway"],
        "half_load": {
            "requests_per_s": len(half) / options.seconds,
            "added": milliseconds([e.took_s for e in half]),
        },
    }


def span_s(exchanges: list[Exchange]) -> float:
    return max(e.end_s for e in exchanges) - min(e.due_s for e in exchanges)


def streamed(options: argparse.Namespace) -> dict[str, Any]:
    """The gateway's CPU time a streamed token."""
    body = {"prompt": PROMPT, "max_tokens": STREAMED_TOKENS, "temperature": 0, "stream": True}
    requests = [post(PATH, body)]
    count = max(2 * CLIENTS, options.requests // 20)
    with front(iteration_s=STREAM_ITERATION_S) as server:
        uvloop.run(closed_loop(server.port, requests, CLIENTS, CLIENTS))
        used_s = -cpu_s(server.gateway)
        done = [e for _, e in uvloop.run(closed_loop(server.port, requests, CLIENTS, count))]
        used_s += cpu_s(server.gateway)
    tokens = count * STREAMED_TOKENS
    return {
        "streams": CLIENTS,
        "tokens": tokens,
        "tokens_per_s": tokens / span_s(done),
        "gateway_cpu_us_per_token": used_s / tokens * 1e6,
    }


def expected_texts(prompts: list[list[int]], tokens: int) -> list[str]:
    """What the null engine answers, without any server."""
    folder = null_model()
    words = words_of(read_model_info(folder).vocab_size, read_stop_token_ids(folder))
    greedy = SamplingParams(temperature=0)
    codec = TextCodec.load(folder.path)
    try:
        said = [continuation(prompt, tokens, greedy, words) for prompt in prompts]
        return ["".join(codec.token_text(token) for token in answer) for answer in said]
    finally:
        codec.close()


def many_streams(options: argparse.Namespace) -> dict[str, Any]:
    """Many streams at once for a while, each checked against what the engine must have said."""
    prompts = [[(7 * number + place) % 500 + 4 for place in range(64)] for number in range(20)]
    tokens = max(2, round(options.stream_seconds / LONG_ITERATION_S))
    texts = expected_texts(prompts, tokens)
    bodies = [
        {"prompt": p, "max_tokens": tokens, "temperature": 0, "stream": True} for p in prompts
    ]
    requests = [post(PATH, body) for body in bodies]
    with front(iteration_s=LONG_ITERATION_S) as server:
        used_s = -cpu_s(server.gateway)
        done = uvloop.run(closed_loop(server.port, requests, options.streams, options.streams))
        used_s += cpu_s(server.gateway)
    right = sum(exchange.text() == texts[which] for which, exchange in done)
    total = tokens * options.streams
    return {
        "streams": options.streams,
        "tokens_a_stream": tokens,
        "tokens": total,
        "seconds": span_s([e for _, e in done]),
        "seconds_with_all_streams_at_once": (
            min(e.end_s for _, e in done) - max(e.first_s for _, e in done)
        ),
        "streams_with_exactly_the_right_text": right,
        "streams_wrong": options.streams - right,
        "gateway_cpu_us_per_token": used_s / total * 1e6,
    }


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Memory of every process before and after many requests, after a tenth of them to warm up."""
    with front() as server:
        pids = [server.gateway, *server.workers]
        samples = []
        steps = 10
        for _ in range(steps + 1):
            for _ in range(10):  # what the client keeps of its exchanges stays small
                total = max(1, options.memory_requests // (10 * steps))
                uvloop.run(closed_loop(server.port, [SHORT], CLIENTS, total))
            samples.append([resident_mib(pid) for pid in pids])
    by_process = list(zip(*samples, strict=True))
    names = ("gateway", "prompt_worker", "token_worker")
    return {
        "requests": options.memory_requests,
        "resident_mib": {name: list(s) for name, s in zip(names, by_process, strict=True)},
        "grown_mib": {name: s[-1] - s[0] for name, s in zip(names, by_process, strict=True)},
    }


def scheduler(options: argparse.Namespace) -> dict[str, Any]:
    """The cluster scheduler alone, with few and with many machines."""
    sizes = (10, options.machines)
    return {f"{size}_machines": measure_scheduler(size, options.decisions) for size in sizes}


def joins(options: argparse.Namespace) -> dict[str, Any]:
    """Many machines that join at once, and come back at once."""
    return measure_joins(options.machines)


def mock_machines(options: argparse.Namespace) -> dict[str, Any]:
    """The gateway and the scheduler over machines that answer at once, and vllm-router likewise."""
    load = (options.requests, CLIENTS, options.seconds)
    figures = {"splitwise": gateway_mock.measure(*load)}
    if options.router is not None:
        figures["vllm_router"] = gateway_peer.measure(options.router, *load)
    return figures


CASES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "one_client": one_client,
    "rate": rate,
    "streamed": streamed,
    "many_streams": many_streams,
    "memory": memory,
    "scheduler": scheduler,
    "joins": joins,
    "mock_machines": mock_machines,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--requests", type=int, default=8000, help="of a rate")
    parser.add_argument("--seconds", type=float, default=10.0, help="at half load")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--stream-seconds", type=float, default=60.0)
    parser.add_argument("--memory-requests", type=int, default=100_000)
    parser.add_argument("--machines", type=int, default=1000)
    parser.add_argument("--decisions", type=int, default=50_000)
    parser.add_argument("--router", type=Path, help="vllm-router's command")
    options = parser.parse_args()
    record = read_result("gateway") or {"cases": {}}
    for name in options.only:
        load = os.getloadavg()[0]
        figures = CASES[name](options)
        where = environment() | {"load_average_before": load}
        record["cases"][name] = {"environment": where, **figures}
        write_result("gateway", record)
        _show(name, figures)


def _show(name: str, figures: dict[str, Any]) -> None:
    table = Table("figure", "value", title=name)
    for figure, value in _flat(figures):
        table.add_row(figure, f"{value:,.2f}" if isinstance(value, float) else str(value))
    Console().print(table)


def _flat(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}: ")
        else:
            yield prefix + name, value


if __name__ == "__main__":
    main()
