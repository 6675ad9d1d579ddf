"""The trace against the rules of the trace-event format."""

import gzip
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_results import POOLS, random_result

from splitwise.simulation.result import Segments
from splitwise.simulation.timeline import FIRST_POOL_PROCESS, write_timeline

Event = dict[str, Any]


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    path = tmp_path_factory.mktemp("trace") / "run.json"
    write_timeline(random_result(), path, requests=50)
    trace = json.loads(path.read_text())
    assert trace["displayTimeUnit"] == "ms"
    found: list[Event] = trace["traceEvents"]
    return found


def test_every_event_has_what_its_phase_requires(events: list[Event]) -> None:
    needs = {
        **{"X": {"dur"}, "C": {"args"}, "M": {"args"}},
        **{"b": {"id", "cat"}, "e": {"id", "cat"}, "s": {"id", "cat"}, "f": {"id", "cat"}},
    }
    for event in events:
        assert {"ph", "name", "pid", "tid", "ts"} | needs[event["ph"]] <= set(event)
        assert event["ts"] >= 0
    for event in (one for one in events if one["ph"] == "C"):
        assert all(isinstance(value, int) for value in event["args"].values())
    assert {event["ph"] for event in events} == set(needs)


def test_slices_are_the_segments(events: list[Event]) -> None:
    segments = random_result().segments
    slices = [event for event in events if event["ph"] == "X"]
    assert len(slices) == len(segments.start_s)
    for i, event in enumerate(slices):
        assert event["tid"] == segments.machine[i]
        assert event["pid"] == FIRST_POOL_PROCESS + POOLS[segments.machine[i]]
        assert event["ts"] == pytest.approx(segments.start_s[i] * 1e6, abs=0.001)
        assert event["dur"] >= 0
        assert event["ts"] + event["dur"] == pytest.approx(segments.end_s[i] * 1e6, abs=0.001)


def test_every_process_and_machine_has_a_name(events: list[Event]) -> None:
    processes = {one["pid"] for one in events if one["name"] == "process_name"}
    threads = {(one["pid"], one["tid"]) for one in events if one["name"] == "thread_name"}
    assert {event["pid"] for event in events} <= processes
    assert {(one["pid"], one["tid"]) for one in events if one["ph"] == "X"} <= threads


def test_asynchronous_events_nest(events: list[Event]) -> None:
    stacks: dict[tuple[str, int], list[str]] = defaultdict(list)
    last_us: dict[tuple[str, int], float] = defaultdict(float)
    for event in (one for one in events if one["ph"] in "be"):
        track = (event["cat"], event["id"])
        assert event["ts"] >= last_us[track]
        last_us[track] = event["ts"]
        if event["ph"] == "b":
            stacks[track].append(event["name"])
        else:
            assert stacks[track].pop() == event["name"]
    assert not any(stacks.values())
    assert len(stacks) == 50 + 45  # every tenth has nothing to transfer


def test_arrows_start_and_end_in_slices(events: list[Event]) -> None:
    spans = defaultdict(list)
    for event in (one for one in events if one["ph"] == "X"):
        spans[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    arrows = [event for event in events if event["ph"] in "sf"]
    assert len(arrows) == 2 * 45
    for event in arrows:
        around = spans[event["pid"], event["tid"]]
        assert any(start <= event["ts"] < end for start, end in around)
        assert event.get("bp") == ("e" if event["ph"] == "f" else None)


def test_compressed_and_without_segments(tmp_path: Path) -> None:
    none = np.zeros(0)
    empty = Segments(
        *(none.astype(np.int64), none, none, none.astype(np.int8)),
        *(none.astype(np.int64), none.astype(np.int64), none.astype(np.int64)),
    )
    path = tmp_path / "run.json.gz"
    write_timeline(replace(random_result(), segments=empty), path, requests=1000)
    phases = {
        event["ph"] for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    }
    assert phases == {"M", "C", "b", "e"}
