"""``splitwise hardware``, as typed."""

import json
from pathlib import Path

from typer.testing import CliRunner

from splitwise.cli.hardware import app
from splitwise.hardware.loading import BUILT_IN


def test_list_as_json() -> None:
    answer = CliRunner().invoke(app, ["list", "--json", "--prices", "plots"])
    assert answer.exit_code == 0
    rows = json.loads(answer.stdout)["rows"]
    assert len(rows) == 6
    assert rows[0]["dollars_per_hour"] == 17.68


def test_list_of_gpus() -> None:
    answer = CliRunner().invoke(app, ["list", "--json", "--profile", "roofline"])
    assert "b200" in {row["gpu"] for row in json.loads(answer.stdout)["rows"]}


def test_show() -> None:
    answer = CliRunner().invoke(app, ["show", "dgx-a100", "bloom-176b"])
    assert answer.exit_code == 0
    assert "89,234" in answer.stdout


def test_check_of_a_file(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["check", str(BUILT_IN)]).exit_code == 0
    wrong = tmp_path / "wrong.json"
    wrong.write_text(BUILT_IN.read_text().replace('"gpus": 8', '"gpus": -8', 1))
    answer = CliRunner().invoke(app, ["check", str(wrong)])
    assert answer.exit_code == 1
    assert "machines.dgx-a100.gpus is -8" in answer.stderr


def test_check_of_the_roofline() -> None:
    answer = CliRunner().invoke(app, ["check", "--json"])
    assert len(json.loads(answer.stdout)["rows"]) == 24
