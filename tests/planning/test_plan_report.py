"""The plan's page and plots, the simulations behind them, and its tables."""

import io
import re
import sys
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from page_checks import check_fetches_nothing, check_ids_differ, drawings
from plan_report_toy import question
from rich.console import Console
from typer.testing import CliRunner

from splitwise.cli.main import app
from splitwise.observe.page import ReportError
from splitwise.planning.curves import (
    LatencyCurve,
    Neighbourhood,
    best_of_each,
    latency_curves,
    neighbourhood,
)
from splitwise.planning.plan import Plan, plan
from splitwise.planning.question import Limits, Objective
from splitwise.planning.report import page, write_html
from splitwise.planning.report_terminal import print_plan
from splitwise.planning.sensitivity import Case
from splitwise.planning.workers import Crew, here

COMMANDS = ("splitwise simulate <load>", "splitwise serve MODEL")
TITLE = "A <b>bold</b> & risky title"


@dataclass(frozen=True)
class Report:
    """A plan and what its page is made of."""

    plan: Plan
    around: Neighbourhood
    curves: list[LatencyCurve]

    def page(self) -> str:
        return page(self.plan, self.around, self.curves, TITLE, COMMANDS)


def report_of(found: Plan, crew: Crew) -> Report:
    around = neighbourhood(crew, found.question, found.best.design)
    return Report(found, around, latency_curves(crew, found))


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Crew:
    return Crew(here, tmp_path_factory.mktemp("plan") / "outcomes.sqlite")


@pytest.fixture(scope="module")
def split(crew: Crew) -> Report:
    """Least cost at a rate: a split cluster is best."""
    return report_of(plan(question(), crew), crew)


@pytest.fixture(scope="module")
def baseline(crew: Crew) -> Report:
    """The most of six machines: a baseline is best."""
    asked = replace(question(Objective.THROUGHPUT, None), limits=Limits(machines=6))
    return report_of(plan(asked, crew, what_if=False), crew)


@pytest.fixture(scope="module")
def html(split: Report, crew: Crew, tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("matplotlib", reason="plots need the extra `report`")
    path = tmp_path_factory.mktemp("report") / "plan.html"
    write_html(split.plan, crew, path, TITLE, COMMANDS)
    return path.read_text()


def test_page_is_well_formed_and_escaped(html: str) -> None:
    ElementTree.fromstring(re.sub(r"<(meta|br)\b[^>]*>|<!doctype html>", "", html))
    assert "<b>" not in html
    assert "A &lt;b&gt;bold&lt;/b&gt; &amp; risky title" in html
    assert "<pre>splitwise simulate &lt;load&gt;\nsplitwise serve MODEL</pre>" in html


def test_page_fetches_nothing(html: str) -> None:
    check_fetches_nothing(html)


def test_page_names_every_family_case_offer_and_slo(html: str, split: Report) -> None:
    found = split.plan
    for answer in found.answers:
        assert escape(answer.family.name) in html
        assert answer.best is None or escape(answer.best.design.name) in html
    for case in found.sensitivity:
        row = f"<td>{escape(case.change)}</td>"
        assert f'{row}<td class="text">{escape(str(case.design))}</td>' in html
    assert all(f"<td>{escape(offer.name)}</td>" in html for offer in found.question.offers)
    assert all(escape(str(slo)) in html for slo in found.question.slos)


def test_every_plot_is_there_with_ids_of_its_own(html: str, split: Report) -> None:
    plots = drawings(html)
    assert len(plots) == 1 + len(split.curves) + 2
    check_ids_differ(html)
    words = ["prompt machines", *["TTFT, ms"] * len(split.curves), "on the front", "machine lost"]
    assert all(word in plot for word, plot in zip(words, plots, strict=True))


def test_equal_plans_have_equal_pages(html: str, split: Report) -> None:
    assert split.page() == html


def test_map_marks_the_best_and_agrees_with_the_plan(split: Report) -> None:
    around, found = split.around, split.plan
    assert found.best.design.family.is_split
    place = around.place_of_best
    counts = tuple(axis[where] for axis, where in zip(around.axes, place, strict=True))
    assert counts == found.best.design.counts
    assert around.rates_per_s[place] == found.most.by_seed[0]
    assert around.is_allowed[place]
    in_stock = [np.less_equal(axis, 8) for axis in around.axes]
    np.testing.assert_array_equal(around.is_allowed, np.logical_and.outer(*in_stock))


def test_map_draws_the_best_at_its_place(split: Report) -> None:
    figure = pytest.importorskip("matplotlib.figure", reason="plots need the extra `report`")
    from splitwise.planning.report_plots import _heat

    axes = figure.Figure().add_subplot()
    _heat(axes, split.around, 12.0)
    (best,) = [patch for patch in axes.patches if patch.get_label() == "best"]
    assert best.get_xy() == split.around.place_of_best
    column, row = split.around.place_of_best
    labels = [axes.get_xticklabels()[column], axes.get_yticklabels()[row]]
    counts = tuple(int(label.get_text()) for label in labels)
    assert counts == split.plan.best.design.counts


def test_boundary_by_hand() -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra `report`")
    from splitwise.planning.report_plots import boundary

    inside = np.array([[False, False], [False, True]])
    assert sorted(boundary(inside)) == [((1, 1), (1, 2)), ((1, 1), (2, 1))]


def test_baseline_has_a_line_of_counts(baseline: Report) -> None:
    around = baseline.around
    assert around.best.counts == (6,)
    assert around.axes == (tuple(range(1, 13)),)
    assert around.is_allowed.tolist() == [count <= 6 for count in around.axes[0]]
    assert (np.diff(around.rates_per_s) >= 0).all()
    assert "mixed machines, quick" in drawings(baseline.page())[0]


def test_curves_bracket_the_highest_rate(split: Report) -> None:
    assert [curve.design for curve in split.curves] == [
        one.design for one in best_of_each(split.plan)
    ]
    assert len(split.curves) == sum(answer.best is not None for answer in split.plan.answers)
    for curve in split.curves:
        assert curve.beyond.rate_per_s == curve.highest_per_s + 1
        assert not curve.beyond.outcome.meets_slos
        rates = [point.rate_per_s for point in curve.points]
        assert rates == sorted(rates) and rates[-1] == pytest.approx(1.2 * curve.highest_per_s)
        (at_most,) = [one for one in curve.points if one.rate_per_s == curve.highest_per_s]
        assert at_most.outcome.meets_slos


def test_page_says_what_breaks_first(html: str, split: Report) -> None:
    for curve in split.curves:
        check = curve.beyond.outcome.missed[0]
        start = f'{escape(curve.design.name)}</td><td class="text">{check.metric.upper()} P'
        assert f"{start}{check.percentile}" in html


def test_clusters_in_one_place_share_a_label(baseline: Report) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra `report`")
    from splitwise.planning.report_plots import front_places

    (first, *_) = found = baseline.plan.front
    twice = replace(baseline.plan, front=(first, *found))
    numbers = front_places(twice)
    assert next(iter(numbers.values())).startswith("1, 2")
    assert ", ".join(numbers.values()) == ", ".join(str(one + 1) for one in range(len(found) + 1))


def test_a_case_without_a_cluster_says_none(split: Report) -> None:
    lost = Case("all is lost", None, *[float("nan")] * 3)
    plots = drawings(replace(split, plan=replace(split.plan, sensitivity=(lost,))).page())
    assert ">none<" in plots[-1] and "nan" not in plots[-1]


def test_without_what_if_there_is_no_such_section(baseline: Report) -> None:
    html = baseline.page()
    assert "What if" not in html
    assert len(drawings(html)) == 1 + len(baseline.curves) + 1


def test_tables_fit_into_80_columns(split: Report) -> None:
    text = io.StringIO()
    print_plan(split.plan, COMMANDS, Console(file=text, width=80))
    for answer in split.plan.answers:
        name = answer.family.name if answer.best is None else answer.best.design.name
        assert name in text.getvalue()


def test_a_report_without_matplotlib_names_the_remedy(
    split: Report, crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ReportError, match=r"pip install 'splitwise-llm\[report\]'"):
        write_html(split.plan, crew, tmp_path / "plan.html", TITLE, COMMANDS)


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra `report`")
    path = tmp_path / "plan.html"
    arguments = ["--rate=2", "--offer=dgx-h100:2", "--seeds=1", "--no-what-if", "--cores=1"]
    arguments += [f"--cache={tmp_path / 'known.sqlite'}", f"--html={path}"]
    result = CliRunner().invoke(app, ["plan", "coding", *arguments])
    assert result.exit_code == 0, result.output
    assert "<h1>Splitwise plan: coding</h1>" in path.read_text()


def test_the_command_refuses_a_missing_folder_at_once(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra `report`")
    result = CliRunner().invoke(app, ["plan", f"--html={tmp_path / 'none' / 'plan.html'}"])
    assert result.exit_code == 1
    assert "give a file in a folder that exists" in result.output
