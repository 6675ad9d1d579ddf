"""A short chaos run: the benchmark's own, with fewer requests and more frequent harm."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[2] / "benchmarks" / "chaos.py"


def chaos(*arguments: str, limit_s: float) -> dict[str, object]:
    result = subprocess.run(
        [sys.executable, str(CHAOS), "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return dict(json.loads(result.stdout))


def assert_harmless(figures: object, least_harms: int) -> None:
    assert isinstance(figures, dict)
    assert sum(figures["harms"].values()) >= least_harms
    for fault in ("lost", "with_tokens_twice", "with_other_tokens", "caches_not_free"):
        assert not figures[fault], figures


def test_nothing_is_lost_to_a_little_chaos() -> None:
    figures = chaos("--only=null", "--requests=800", "--every-s=0.5", limit_s=240)["null"]
    assert_harmless(figures, least_harms=5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nothing_is_lost_to_chaos() -> None:
    record = chaos(limit_s=3500)
    assert_harmless(record["null"], least_harms=50)
    assert_harmless(record["real"], least_harms=50)
