"""``splitwise simulate`` as a user meets it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from splitwise.cli.main import app

CLUSTER = ("--prompt", "2xdgx-h100", "--token", "2xdgx-a100")


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["simulate", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_json_counts_every_request() -> None:
    found = json.loads(run("coding", "--rate=2", "--duration=60", *CLUSTER, "--json"))
    counts = found["counts"]
    assert counts["arrived"] == counts["finished"] > 60
    assert [group["machines"] for group in found["groups"]] == [2, 2]


def test_all_files_are_written(tmp_path: Path) -> None:
    files = [f"--html={tmp_path / 'r.html'}", f"--timeline={tmp_path / 't.json'}"]
    files += [f"--requests-table={tmp_path / 'r.parquet'}"]
    files += [f"--machines-table={tmp_path / 'm.csv'}"]
    run("coding", "--rate=2", "--duration=30", *CLUSTER, *files)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("m.csv", "r.html", "r.parquet", "t.json")
    ]


def test_an_outage_is_seen() -> None:
    arguments = ("coding", "--rate=2", "--duration=60", *CLUSTER, "--json")
    calm = json.loads(run(*arguments))
    hit = json.loads(run(*arguments, "--outage", "token:0@10-40", "--outage", "prompt:1@20"))
    assert hit["counts"]["finished"] == calm["counts"]["finished"]
    assert hit["latencies"]["e2e_s"]["p99"] > calm["latencies"]["e2e_s"]["p99"]


def test_a_cache_may_grow_with_the_output() -> None:
    arguments = ("coding", "--rate=2", "--duration=60", *CLUSTER, "--json")
    promised = json.loads(run(*arguments))
    grown = json.loads(run(*arguments, "--kv-cache=grown", "--block-tokens=32"))
    assert grown["counts"] == promised["counts"]
    assert grown != promised


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prompt", "2xdgx-h100"), "no token machine"),
        (("--mixed", "dgx-h100"), "write COUNTxKIND"),
        (("--mixed", "1xdgx-z9"), "dgx-z9"),
        (("--mixed", "1xdgx-a100", "--rate", "-3"), "rate_per_s -3"),
        (("--mixed", "1xdgx-a100", "--outage", "token:0@5"), "has 0 token machines"),
        (("--mixed", "1xdgx-a100", "--outage", "5"), "write POOL:NUMBER@DOWN"),
        (("--mixed", "1xdgx-a100", "--arrivals", "weekly"), "write poisson"),
        (("--mixed", "1xdgx-a100", "--kv-cache", "paged"), "cache is 'paged'"),
        (("--mixed", "1xdgx-a100", "--policy", "two-choice"), "choose from default, two-choices"),
        (("nowhere.csv", "--mixed", "1xdgx-a100"), "no such file"),
    ],
)
def test_bad_input_is_explained(arguments: tuple[str, ...], words: str) -> None:
    assert words in " ".join(run(*arguments, code=1).split())
