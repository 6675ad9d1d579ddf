"""Options come from flags, then a YAML file, then the environment.

A server that lacks a kind of machine ends at once and names the numbers it was given.
"""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from splitwise.cli.main import app


def complaint(*arguments: str, env: dict[str, str] | None = None) -> str:
    result = CliRunner().invoke(app, ["serve", *arguments], env=env)
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def test_flags_win_over_the_file_and_the_file_over_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("prompt: 0\ntoken: 4\n")
    env = {"SPLITWISE_PROMPT": "0", "SPLITWISE_TOKEN": "3"}
    assert "--prompt 0 --token 3" in complaint(env=env)
    assert "--prompt 0 --token 4" in complaint(f"--config={file}", env=env)
    assert "--prompt 0 --token 5" in complaint(f"--config={file}", "--decode=5", env=env)


@pytest.mark.parametrize(
    ("content", "words"),
    [("promt: 1\n", "no such option promt"), ("- 1\n", "name: value"), ("a: [\n", "serve.yaml")],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(content)
    # Rich breaks long lines inside a frame.
    said = complaint(f"--config={file}").replace("│", "").replace(" ", "")
    assert words.replace(" ", "") in said


def test_a_value_of_the_wrong_kind_names_its_option() -> None:
    assert "--port" in complaint("--port=many")
