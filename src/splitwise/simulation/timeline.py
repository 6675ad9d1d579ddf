"""A simulation as Chrome trace events, which https://ui.perfetto.dev opens.

One process a pool with one thread a machine, whose slices are the segments; counters of the
cluster's samples; and, for the first requests, one track each with their phases, and an arrow
from the prompt's slice to the first decode's. Times are microseconds of virtual time.

Format: "Trace Event Format", Google, the document that Perfetto's JSON importer follows.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from splitwise.scheduling.pool import Pool
from splitwise.simulation.result import Result

CLUSTER_PROCESS: Final = 1
REQUEST_PROCESS: Final = 2
FIRST_POOL_PROCESS: Final = 3
_SEGMENT_NAMES: Final = ("prompt", "decode", "mixed")


class TraceEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event; ``ts`` and ``dur`` in microseconds. Fields that do not apply are left out."""

    ph: Literal["X", "C", "M", "b", "e", "s", "f"]
    name: str
    pid: int
    tid: int
    ts: float
    dur: float | None = None
    cat: str | None = None
    id: int | None = None
    bp: str | None = None
    args: dict[str, int | str] | None = None


class Trace(msgspec.Struct, frozen=True):
    """The JSON object format."""

    traceEvents: list[TraceEvent]
    displayTimeUnit: Literal["ms", "ns"] = "ms"


def write_timeline(result: Result, path: Path, requests: int = 200) -> None:
    """Write the trace to ``path``, compressed if its name ends in .gz; Perfetto opens both.

    ``requests`` is how many requests get a track of their own. Machines show nothing if the
    simulation kept no segments (``Options.timeline_segments``).
    """
    trace = msgspec.json.encode(Trace(list(events(result, requests))))
    path.write_bytes(gzip.compress(trace, 6) if path.suffix == ".gz" else trace)


def events(result: Result, requests: int) -> Iterator[TraceEvent]:
    """All events: names, slices, counters, then the first ``requests`` requests."""
    yield from names(result)
    yield from slices(result)
    yield from counters(result)
    last_slice_s = float(result.segments.end_s.max()) if len(result.segments.end_s) else -1.0
    for request in range(min(requests, len(result.arrival_s))):
        yield from phases(result, request)
        if result.decode_start_s[request] < last_slice_s:
            yield from arrow(result, request)


def names(result: Result) -> Iterator[TraceEvent]:
    """Names of the processes and threads."""
    processes = ["cluster", "requests", *(f"{pool.name.lower()} pool" for pool in Pool)]
    for process, name in enumerate(processes, start=CLUSTER_PROCESS):
        yield TraceEvent("M", "process_name", process, 0, 0.0, args={"name": name})
        yield TraceEvent("M", "process_sort_index", process, 0, 0.0, args={"sort_index": process})
    for machine, kind in enumerate(result.machine_kind):
        name = f"machine {machine} ({kind})"
        process = process_of(result, machine)
        yield TraceEvent("M", "thread_name", process, machine, 0.0, args={"name": name})


def process_of(result: Result, machine: int) -> int:
    """The process that stands for the machine's home pool."""
    return FIRST_POOL_PROCESS + int(result.home_pool[machine])


def microseconds(time_s: float) -> float:
    """Rounded to a nanosecond, which keeps files small."""
    return round(float(time_s) * 1e6, 3)


def slices(result: Result) -> Iterator[TraceEvent]:
    """What the machines ran."""
    segments = result.segments
    for i in range(len(segments.start_s)):
        machine = int(segments.machine[i])
        start_us = microseconds(segments.start_s[i])
        yield TraceEvent(
            "X",
            _SEGMENT_NAMES[segments.kind[i]],
            process_of(result, machine),
            machine,
            start_us,
            dur=round(microseconds(segments.end_s[i]) - start_us, 3),
            cat="segment",
            args={
                "prompts": int(segments.prompts[i]),
                "decodes": int(segments.decodes[i]),
                "iterations": int(segments.iterations[i]),
            },
        )


def counters(result: Result) -> Iterator[TraceEvent]:
    """The cluster's samples."""
    pools = [pool.name.lower() for pool in Pool]
    for i, time_s in enumerate(result.sample_s):
        at_us = microseconds(time_s)
        sizes = dict(zip(pools, result.pool_sizes[i].tolist(), strict=True))
        for name, args in (
            ("waiting prompts", {"requests": int(result.waiting_prompts[i])}),
            ("running decodes", {"requests": int(result.running_decodes[i])}),
            ("cache in use", {"tokens": int(result.kv_tokens[i])}),
            ("machines by pool", sizes),
        ):
            yield TraceEvent("C", name, CLUSTER_PROCESS, 0, at_us, args=dict(args))


def phases(result: Result, request: int) -> Iterator[TraceEvent]:
    """The request and its phases that have ended, as nested asynchronous events.

    A transfer overlaps the prompt, and so it has a category, that is a track, of its own.
    """
    arrival_s = result.arrival_s[request]
    prompt_s = result.prompt_start_s[request]
    first_s = result.first_token_s[request]
    decode_s = result.decode_start_s[request]
    finish_s = result.finish_s[request]
    args: dict[str, int | str] = {
        "prompt tokens": int(result.prompt_tokens[request]),
        "output tokens": int(result.output_tokens[request]),
        "prompt machine": int(result.prompt_machine[request]),
        "token machine": int(result.token_machine[request]),
    }
    if not np.isnan(finish_s):
        name = f"request {request}"
        yield _edge("b", name, "request", request, arrival_s, args)
        yield from _span("queue", "request", request, arrival_s, prompt_s)
        yield from _span("prompt", "request", request, prompt_s, first_s)
        yield from _span("wait for decode", "request", request, first_s, decode_s)
        yield from _span("decode", "request", request, decode_s, finish_s)
        yield _edge("e", name, "request", request, finish_s)
    start_s, end_s = result.transfer_start_s[request], result.transfer_end_s[request]
    yield from _span("transfer", "transfer", request, start_s, end_s)


def _span(
    name: str, category: str, request: int, start_s: float, end_s: float
) -> Iterator[TraceEvent]:
    if not np.isnan(start_s) and not np.isnan(end_s):
        yield _edge("b", name, category, request, start_s)
        yield _edge("e", name, category, request, end_s)


def _edge(
    ph: Literal["b", "e"],
    name: str,
    category: str,
    request: int,
    time_s: float,
    args: dict[str, int | str] | None = None,
) -> TraceEvent:
    at_us = microseconds(time_s)
    return TraceEvent(ph, name, REQUEST_PROCESS, 0, at_us, cat=category, id=request + 1, args=args)


def arrow(result: Result, request: int) -> Iterator[TraceEvent]:
    """From the start of the prompt on its machine to the first decode on another."""
    source = int(result.prompt_machine[request])
    target = int(result.token_machine[request])
    if source == target:
        return
    for ph, machine, time_s, bind in (
        ("s", source, result.prompt_start_s[request], None),
        ("f", target, result.decode_start_s[request], "e"),
    ):
        yield TraceEvent(
            "s" if ph == "s" else "f",
            f"request {request}",
            process_of(result, machine),
            machine,
            microseconds(time_s),
            cat="handover",
            id=request + 1,
            bp=bind,
        )
