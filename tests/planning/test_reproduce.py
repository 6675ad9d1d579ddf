"""``splitwise reproduce`` against the published numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from splitwise.cli.main import app
from splitwise.planning.reproduce.section import Figure
from splitwise.planning.reproduce.setting import TRACES, find_traces


def reproduce(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["reproduce", *arguments, "--cores=1", "--cache=none"])
    assert result.exit_code == code, result.output
    return result.output


def figures(section: Any) -> dict[str, float]:
    return {figure["what"]: figure["ours"] for figure in section["figures"]}


@pytest.fixture(scope="module")
def poster() -> list[dict[str, float]]:
    return [figures(one) for one in json.loads(reproduce("poster", "--json"))]


def test_the_posters_servers_cost_and_power(poster: list[dict[str, float]]) -> None:
    """(25 x 4.76 + 26 x 2.21) / (70 x 2.21) and (25 x 44 + 26 x 24.8) / (70 x 24.8)."""
    published = poster[0]
    assert round(published["heterogeneous: servers"], 2) == 0.73
    assert round(published["heterogeneous: cost"], 2) == 1.14
    assert published["heterogeneous: power"] == pytest.approx(1.005, abs=0.001)
    for name in ("servers", "cost", "power"):
        assert published[f"homogeneous: {name}"] == 1


def test_the_posters_throughput_under_its_own_rules(poster: list[dict[str, float]]) -> None:
    published, best = poster[:2]
    assert published["homogeneous: throughput"] == pytest.approx(2.4, rel=0.1)
    assert published["heterogeneous: throughput"] == pytest.approx(2.6, rel=0.1)
    for name in ("homogeneous", "heterogeneous"):
        assert best[f"{name}: throughput"] >= published[f"{name}: throughput"] * 0.99


def test_the_measured_batch_curve_takes_most_of_it(poster: list[dict[str, float]]) -> None:
    published, best = poster[2:]
    for name in ("homogeneous", "heterogeneous"):
        assert published[f"{name}: throughput"] < 1 < best[f"{name}: throughput"] < 2


def test_characterization_needs_no_search_and_says_where_it_differs() -> None:
    sections = json.loads(reproduce("characterization", "--json"))
    compared = [one for section in sections for one in section["figures"] if one["published"]]
    assert len(compared) > 20
    by_title = {section["title"]: figures(section) for section in sections}
    transfer = by_title["State transfer, coding"]
    assert 0 <= transfer["A100: E2E added, layer by layer"] < 0.8
    assert transfer["A100: E2E added, layer by layer"] < transfer["A100: E2E added, in one piece"]
    assert by_title["Batching"]["A100: batched prompt tokens of most speed"] == 2048


def test_the_page_holds_every_figure(tmp_path: Path) -> None:
    page = tmp_path / "figures.html"
    text = reproduce("characterization", f"--html={page}")
    html = page.read_text()
    for words in ("Latencies without batching", "coding, A100: TTFT P50", "185 ms"):
        assert words in html
        assert words in " ".join(text.split())
    assert html.count("<svg") >= 4


def test_an_unknown_part_is_refused_with_the_known_ones() -> None:
    said = " ".join(reproduce("posters", code=1).split())
    assert "part 'posters': choose from poster, iso-power," in said


def test_traces_are_found_in_the_folder_or_below(tmp_path: Path) -> None:
    below = tmp_path / "azure_llm_2023"
    below.mkdir()
    (below / TRACES["coding"]).touch()
    assert find_traces(tmp_path) == find_traces(below) == {"coding": below / TRACES["coding"]}
    assert find_traces(None) == {}


def test_differences_by_hand() -> None:
    assert Figure("what", 2.2, 2.0).difference == pytest.approx(0.1)
    assert Figure("what", 2.2).difference is None
    assert Figure("what", 2.2, 0.0).cells() == ("what", "2.2 x", "0 x", "")
