"""``splitwise workload`` as a user meets it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from splitwise.cli.workload import app
from splitwise.workload import WorkloadError, open_source, read_requests


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def test_inspect_shows_a_built_in_workload() -> None:
    shown = run("inspect", "conversation", "--rate=20", "--duration=300")
    for words in ("conversation: ", "interarrival CV", "P99", "tokens, log scale", "█", "arrivals"):
        assert words in shown


def test_inspect_gives_programs_json() -> None:
    arguments = ["inspect", "coding", "--rate=20", "--duration=500", "--seed=4", "--json"]
    found = json.loads(run(*arguments))
    assert found["source"] == "coding"
    assert found["rate_per_s"] == pytest.approx(20, rel=0.05)
    assert found["prompt_tokens"]["p50"] == pytest.approx(1469, rel=0.05)
    assert run(*arguments) == run(*arguments)


def test_convert_writes_what_inspect_reads(tmp_path: Path) -> None:
    out = tmp_path / "load.csv"
    assert "load.csv: " in run("convert", "coding", str(out), "--rate=5", "--duration=60")
    lines = tmp_path / "load.jsonl"
    told = json.loads(run("convert", str(out), str(lines), "--json"))
    assert told["requests"] == len(read_requests(lines)) == len(read_requests(out))


def test_inspect_shows_a_single_request(tmp_path: Path) -> None:
    file = tmp_path / "one.csv"
    file.write_text("arrival_s,prompt_tokens,output_tokens\n0,5,6\n")
    assert "rank correlation of sizes undefined" in run("inspect", str(file))
    assert json.loads(run("inspect", str(file), "--json"))["rate_per_s"] is None
    assert "span no time" in run("inspect", str(file), "--rate=3", code=1)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    assert "nor one of conversation, coding" in run("inspect", "chat", code=1)
    assert "rate_per_s 0" in run("inspect", "coding", "--rate=0", code=1)
    assert "choose .csv or .jsonl" in run("convert", "coding", str(tmp_path / "a.b"), code=1)


def test_a_recording_is_scaled_and_cut(tmp_path: Path) -> None:
    file = tmp_path / "ten.csv"
    rows = "".join(f"{second},5,6\n" for second in range(10))
    file.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    requests = open_source(str(file), rate_per_s=2, duration_s=3)
    assert requests.arrival_s.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    with pytest.raises(WorkloadError, match="duration_s -1"):
        open_source(str(file), duration_s=-1)


@pytest.mark.parametrize(
    ("arrivals", "cv"),
    [
        ("poisson", 1.0),
        ("gamma:3", 3.0),
        # One gap in 8 is of the slow half: E[x] = 1/20, E[x^2] = 2 (1/8 / 5^2 + 7/8 / 35^2).
        ("steps:0=5,300=35", (2 * (1 / 8 / 25 + 7 / 8 / 1225) * 400 - 1) ** 0.5),
    ],
)
def test_arrivals_by_name(arrivals: str, cv: float) -> None:
    arguments = ["coding", "--rate=20", "--duration=600", f"--arrivals={arrivals}", "--json"]
    found = json.loads(run("inspect", *arguments))
    assert found["rate_per_s"] == pytest.approx(20, rel=0.1)
    assert found["interarrival_cv"] == pytest.approx(cv, rel=0.1)


def test_unknown_arrivals_are_explained() -> None:
    for text in ("weekly", "gamma:often", "steps:0", "replay"):
        with pytest.raises(WorkloadError, match="write poisson"):
            open_source("coding", arrivals=text)
