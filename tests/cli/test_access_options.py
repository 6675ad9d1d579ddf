"""What ``splitwise serve`` says about access before it starts anything."""

import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from splitwise.cli.access import read_access
from splitwise.cli.access_settings import AccessSettings
from splitwise.cli.main import app


def complaint(*arguments: str, env: dict[str, str] | None = None) -> str:
    result = CliRunner().invoke(app, ["serve", *arguments], env=env)
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def test_a_file_without_keys_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none yet\n")
    assert "holds no API key" in complaint(f"--api-keys={tmp_path / 'keys'}")
    assert "cannot read" in complaint(f"--api-keys={tmp_path / 'nothing'}")
    assert "SPLITWISE_API_KEY" in complaint(env={"SPLITWISE_API_KEY": ","})


def test_a_certificate_needs_its_key_and_both_are_named(tmp_path: Path) -> None:
    assert "--tls-key" in complaint("--tls-cert=cert.pem")
    assert "--tls-cert" in complaint("--tls-key=key.pem")
    (tmp_path / "cert.pem").write_text("no certificate")
    assert "nokey.pem" in complaint(f"--tls-cert={tmp_path}/cert.pem", "--tls-key=nokey.pem")


@pytest.mark.parametrize(
    ("host", "key", "warned"),
    [
        ("127.0.0.1", None, False),
        ("127.9.9.9", None, False),
        ("::1", None, False),
        ("localhost", None, False),
        ("0.0.0.0", None, True),
        ("::", None, True),
        ("10.0.0.3", None, True),
        ("some.host", None, True),
        ("0.0.0.0", "sk-secret", False),
    ],
)
def test_a_warning_where_everybody_may_come_in(
    host: str,
    key: str | None,
    warned: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    secrets = {} if key is None else {"SPLITWISE_API_KEY": key}
    assert bool(read_access(host, AccessSettings(), secrets).keys) == (key is not None)
    assert ("without an API key" in caplog.text) == warned
    assert "sk-secret" not in caplog.text
