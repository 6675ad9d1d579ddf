"""``splitwise plan`` as a user meets it."""

import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from toy_offers import write_load
from typer.testing import CliRunner

from splitwise.cli.main import app

OFFERS = ("--offer", "dgx-h100:4", "--offer", "dgx-a100:4")
SMALL = (*OFFERS, "--cores=1", "--cache=none", "--seeds=1", "--no-what-if")
STARTS_WITHIN_S = 60.0
ENDS_WITHIN_S = 30.0


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.output


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def planned(*arguments: str) -> Any:
    return json.loads(run("plan", *arguments, "--json"), parse_constant=refuse_constant)


def simulated(command: str) -> Any:
    name, *arguments = shlex.split(command)
    assert name == "splitwise"
    return json.loads(run(*arguments, "--json"))


def test_json_and_text_have_the_same_answer() -> None:
    arguments = ("coding", "--rate=8", *SMALL)
    record, text = planned(*arguments), run("plan", *arguments)
    best = record["best"]
    assert text.startswith(f"{best['name']}: {best['machines']} machines, ")
    assert f"${best['dollars_per_hour']:,.0f}/h, {best['watts'] / 1000:,.1f} kW" in text
    assert f"first missed at {record['breaks']['rate_per_s']:g}/s" in text
    assert record["simulate_command"] in text
    assert record["serve_command"] in text
    groups = " + ".join(
        f"{one['count']}{one['pool'][0].upper()} {one['kind']}" for one in best["groups"]
    )
    assert groups == best["name"]


def test_what_has_no_value_is_null() -> None:
    """A confidence interval of one seed, limits that were not set, a change without an answer."""
    what_if = [one for one in SMALL if one != "--no-what-if"]
    record = planned("coding", "--rate=9", *what_if, "--max-machines=4")
    assert record["most"]["low"] is record["most"]["high"] is None
    assert record["question"]["max_watts"] is None
    assert record["question"]["max_machines"] == 4
    assert None in [case["design"] for case in record["sensitivity"]]
    for case in record["sensitivity"]:
        assert (case["design"] is None) == (case["rate_per_s"] is None)


@pytest.mark.parametrize(
    "arguments",
    [
        ("coding", "--rate=8"),
        ("coding", "--rate=7.3", "--arrivals=gamma:1.5", "--warm-up=0.1"),
        ("conversation", "--max-cost=200", "--resolution=0.3"),
        ("conversation", "--rate=6", "--objective=power", "--reference=dgx-h100"),
        ("coding", "--rate=5", "--rules=published-2024", "--profile=published-2024"),
        ("conversation", "--rate=5", "--duration=200", "--model=bloom-176b"),
    ],
)
def test_the_printed_simulation_is_one_that_was_searched(arguments: tuple[str, ...]) -> None:
    record = planned(*arguments, *SMALL)
    found = simulated(record["simulate_command"])
    tokens = sum(group["decoded_tokens"] for group in found["groups"])
    assert found["meets_slos"]
    assert found["energy_joules"] / tokens == pytest.approx(record["best"]["joules_per_token"])
    counts = {group["kind"]: group["machines"] for group in found["groups"]}
    assert all(counts[one["kind"]] == one["count"] for one in record["best"]["groups"])


def test_a_policy_is_planned_with_and_handed_on(tmp_path: Path) -> None:
    """One that decides as ``all-mixed`` does, so that roles matter to nobody."""
    mine = tmp_path / "my policy.py"
    mine.write_text("from splitwise.scheduling.policies.all_mixed import place\n")
    arguments = ("coding", "--rate=8", *OFFERS, "--cores=1", "--seeds=1", "--no-what-if")
    arguments += (f"--cache={tmp_path / 'outcomes'}",)
    usual, ours = planned(*arguments), planned(*arguments, f"--policy={mine}")
    again = planned(*arguments, f"--policy={mine}")
    assert (usual["question"]["policy"], ours["question"]["policy"]) == ("default", mine.name)
    assert [sum(one["simulated"] for one in made["families"]) > 0 for made in (usual, ours)] == [
        True,
        True,
    ]
    assert sum(one["simulated"] for one in again["families"]) == 0
    assert "--policy" not in usual["simulate_command"] + usual["serve_command"]
    for command in (ours["simulate_command"], ours["serve_command"]):
        assert f"--policy {shlex.quote(str(mine))}" in command
    found = simulated(ours["simulate_command"])
    assert found["meets_slos"]
    tokens = sum(group["decoded_tokens"] for group in found["groups"])
    joules = ours["best"]["joules_per_token"]
    assert found["energy_joules"] / tokens == pytest.approx(joules)
    assert f"policy: {mine.name}" in run("plan", *arguments, f"--policy={mine}")


def test_a_recording_is_planned_for_and_its_simulation_printed(tmp_path: Path) -> None:
    """400 requests: at any rate fewer than a plan takes by itself."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    record = planned(write_load(folder), "--rate=8", *SMALL)
    found = simulated(record["simulate_command"])
    assert found["meets_slos"]
    assert found["warmup_s"] == pytest.approx(0.25 * 400 / 8, rel=0.01)
    assert found["counts"]["arrived"] == pytest.approx(300, abs=2)


def test_a_step_beyond_is_missed() -> None:
    record = planned("coding", "--max-cost=200", "--duration=300", *SMALL)
    beyond = record["breaks"]
    assert beyond["rate_per_s"] == record["best"]["rate_per_s"] + 1
    command = record["simulate_command"].replace(
        f"--rate {record['best']['rate_per_s']:g}", f"--rate {beyond['rate_per_s']:g}"
    )
    found = simulated(command)
    missed = [slo for slo in found["slos"] if not slo["is_met"]]
    names = [f"{slo['metric'].upper()} P{slo['percentile']}" for slo in missed]
    assert beyond["missed"] == names != []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rate=5", "--objective=throughput"), "rate_per_s is 5, but the objective is throughp"),
        (("--objective=cost",), "rate_per_s is None; say how many requests a second"),
        (("--rate=0",), "rate_per_s is 0.0; say how many"),
        (("--rate=-3",), "rate_per_s is -3.0; say how many"),
        (("--rate=nan",), "rate_per_s is nan; say how many"),
        (("--rate=5", "--max-cost=0"), "dollars_per_hour is 0; allow more than 0"),
        (("--rate=5", "--max-power=-1"), "watts is -1; allow more than 0"),
        (("--rate=5", "--max-machines=nan"), "machines is nan; allow more than 0"),
        (("--rate=5", "--resolution=0"), "resolution_per_s is 0.0; give more than 0"),
        (("--rate=5", "--resolution=inf"), "resolution_per_s is inf; give more than 0"),
        (("--rate=5", "--objective=joy"), "--objective is 'joy'; choose from throughput, cost"),
        (("--rate=5", "--slo=ttft<3"), "slo 'ttft<3': write METRIC:pNN<=LIMIT"),
        (("--rate=5", "--slo=ttft:p90<=0x"), "give a percentile and a limit above 0"),
        (("--rate=5", "--offer=dgx-h100:0"), "stock of dgx-h100 is 0; offer at least 1"),
        (("--rate=5", "--offer=dgx-h100:few"), "--offer is 'dgx-h100:few'; write KIND"),
        (("--rate=5", "--offer=dgx-h100@1.2.3"), "--offer is 'dgx-h100@1.2.3'; write KIND"),
        (("--rate=5", "--offer=dgx-z9"), "machine 'dgx-z9': choose from"),
        (("--rate=5", *["--offer=dgx-h100"] * 2), "dgx-h100, dgx-h100; name each kind once"),
        (("--rate=5", "--profile=roofline"), "--offer: none; name machines for roofline"),
        (("--rate=5", "--profile=nowhere.json"), "profile 'nowhere.json': neither a file"),
        (("--rate=5", "--reference=dgx-z9"), "machine 'dgx-z9': choose from"),
        (("--rate=5", "--rules=none"), "rules is 'none'; it must be one of"),
        (("--rate=5", "--duration=0"), "duration_s is 0; give seconds above 0"),
        (("--rate=5", "--arrivals=steps:0=5"), "arrivals is 'steps:0=5'; steps have rates of"),
        (("--rate=5", "--arrivals=weekly"), "arrivals 'weekly': write poisson"),
        (("--rate=5", "--cache=/dev/null/x"), "name another file, or none"),
        (("nowhere.csv", "--rate=5"), "source is 'nowhere.csv': no such file"),
        (("--rate=5", "--offer=dgx-a100:1"), "no cluster on offer carries 5 requests/s"),
        (("--max-cost=1",), "dollars_per_hour: 1 allowed,"),
        (("--rate=5", "--slo=ttft:p50<=1ms"), "slo ttft:p50<=1ms: a request that has a machine"),
    ],
)
def test_bad_input_is_explained(arguments: tuple[str, ...], words: str) -> None:
    said = run("plan", "--cores=1", "--cache=none", "--seeds=1", *arguments, code=1)
    assert said.startswith("splitwise: ")
    assert words in " ".join(said.split())


def plan_process(cache: Path) -> subprocess.Popen[str]:
    """A plan of some minutes, in a process group of its own, as a terminal has it.

    What a shell runs in the background inherits that Ctrl-C is ignored; a terminal's does not.
    """
    command = (sys.executable, "-m", "splitwise.cli.main", "plan", "conversation", "--rate=50")
    options = ("--cores=2", f"--cache={cache}", "--seeds=9")
    return subprocess.Popen(
        [*command, *options],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def known_outcomes(cache: Path) -> int:
    if not cache.exists():
        return 0
    with sqlite3.connect(cache, timeout=10) as connection:
        try:
            (count,) = connection.execute("SELECT count(*) FROM outcomes").fetchone()
        except sqlite3.OperationalError:  # the table is still to come
            return 0
    return int(count)


def interrupt_when_working(process: subprocess.Popen[str], cache: Path, more_than: int) -> str:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while known_outcomes(cache) <= more_than and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=ENDS_WITHIN_S)
    return said


def test_an_interrupt_keeps_what_is_known(tmp_path: Path) -> None:
    cache = tmp_path / "known.sqlite"
    process = plan_process(cache)
    try:
        said = interrupt_when_working(process, cache, more_than=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said == ("splitwise: interrupted; what was simulated is kept; run it again to go on\n")
    kept = known_outcomes(cache)
    again = plan_process(cache)
    try:
        interrupt_when_working(again, cache, more_than=kept + 20)
    finally:
        again.kill()
    assert known_outcomes(cache) > kept > 20
