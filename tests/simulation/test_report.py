"""The report's page and plots, and tables in files."""

import csv
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from page_checks import check_fetches_nothing, check_ids_differ, drawings
from synthetic_results import Alone, random_result

from splitwise.observe.page import ReportError
from splitwise.scheduling.pool import Pool
from splitwise.simulation.report import page, write_html
from splitwise.simulation.summary import summarise
from splitwise.simulation.table_files import TableFileError, write_machines, write_requests

VOID = {"meta", "br", "img", "link"}


class Balance(HTMLParser):
    """Fails on an end tag that does not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("matplotlib", reason="plots need the extra `report`")
    result = random_result()
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_html(result, summarise(result, Alone()), path, "A <b>bold</b> & risky title")
    return path.read_text()


def test_page_is_well_formed_and_escaped(html: str) -> None:
    balance = Balance()
    balance.feed(html)
    assert balance.open == []
    assert "<b>" not in html
    assert "A &lt;b&gt;bold&lt;/b&gt; &amp; risky title" in html
    assert "mixed, &lt;a100 &amp; more&gt;" in html


def test_page_fetches_nothing(html: str) -> None:
    check_fetches_nothing(html)


def test_plots_are_four_svgs_with_ids_of_their_own(html: str) -> None:
    plots = drawings(html)
    assert len(plots) == 4
    check_ids_differ(html)
    for drawing in plots:
        root = ElementTree.fromstring(drawing)
        here = set(re.findall(r' id="([^"]*)"', drawing))
        assert set(re.findall(r'"#([^"]*)"', drawing)) <= here
        assert set(re.findall(r"url\(#([^)]*)\)", drawing)) <= here
        assert len(root.findall(".//{*}path")) > 5
    assert "TTFT" in plots[0] and "waiting prompts" in plots[1]


def test_tables_show_every_slo_and_group(html: str) -> None:
    assert len(re.findall(r"<td>(?:TTFT|TBT|E2E) P\d\d</td>", html)) == 9
    assert "<td>prompt, h100</td><td>2</td>" in html


def test_equal_input_gives_equal_pages(html: str) -> None:
    result = random_result()
    again = page(result, summarise(result, Alone()), "A <b>bold</b> & risky title")
    assert again == html


def test_occupancy_shares_by_hand() -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra `report`")
    from splitwise.simulation.report_plots import occupancy_shares

    shares = occupancy_shares(random_result(), Pool.TOKEN)
    assert shares is not None
    np.testing.assert_allclose(shares[[0, 1, 39, 40, 513]], [0, 0.25, 0.25, 1, 1])


def test_a_report_without_matplotlib_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = random_result()
    with pytest.raises(ReportError, match=r"pip install 'splitwise-llm\[report\]'"):
        page(result, summarise(result, Alone()), "title")


def test_csv_holds_every_request(tmp_path: Path) -> None:
    result = random_result()
    write_requests(result, tmp_path / "requests.csv")
    with (tmp_path / "requests.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 200
    assert float(rows[7]["finish_s"]) == result.finish_s[7]
    assert (rows[0]["output_tokens"], rows[0]["tbt_s"], rows[0]["reason"]) == ("1", "", "")
    assert (rows[-1]["status"], rows[-1]["reason"]) == ("rejected", "too_large")


def test_jsonl_holds_every_machine(tmp_path: Path) -> None:
    result = random_result()
    write_machines(result, tmp_path / "machines.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "machines.jsonl").read_text().splitlines()]
    assert [row["home_pool"] for row in rows] == ["prompt", "prompt", "token", "mixed"]
    assert rows[3]["kind"] == "<a100 & more>"
    assert [row["busy_s"] for row in rows] == result.busy_s.tolist()


def test_parquet_holds_the_same(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra `report`")
    result = random_result()
    write_requests(result, tmp_path / "requests.parquet")
    write_requests(result, tmp_path / "requests.jsonl")
    lines = (tmp_path / "requests.jsonl").read_text().splitlines()
    table = parquet.read_table(tmp_path / "requests.parquet")
    assert table.to_pylist() == [json.loads(line) for line in lines]
    assert str(table.schema.field("finish_s").type) == "double"


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableFileError, match=r"'.xlsx' is no table format; use .parquet, .csv"):
        write_requests(random_result(), tmp_path / "requests.xlsx")


def test_parquet_without_pyarrow_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TableFileError, match=r"pip install 'splitwise-llm\[report\]'"):
        write_requests(random_result(), tmp_path / "requests.parquet")
