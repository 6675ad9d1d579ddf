"""A server as a child process: whatever it says, and whoever holds its outputs."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from splitwise.launch import local_server
from splitwise.launch.local_server import ServerError, running_server

TALKS = "import os, time; os.write(2, b'\\xff' * 100_000); os.write(1, b'ready: http://there\\n'); "


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that is run instead of ``splitwise``. It ends by SIGINT, also where pytest itself
    runs in the background, where that is ignored from birth."""
    program = tmp_path / "server.py"
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec env --default-signal=INT {sys.executable} {program}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    return program


def test_output_that_is_no_text_and_has_no_end_stops_nobody(server: Path) -> None:
    done = server.with_name("done")
    server.write_text(
        f"{TALKS} os.write(1, b'x' * 1_000_000); open({str(done)!r}, 'w'); time.sleep(600)"
    )
    with running_server() as url:
        assert url == "http://there"
        deadline = time.monotonic() + 30
        while not done.exists():
            assert time.monotonic() < deadline, "nobody reads what the server says"
            time.sleep(0.02)


@pytest.mark.timeout(60)
def test_leaving_has_an_end_though_a_child_holds_the_outputs(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "LAST_WORDS_S", 0.2)
    child = server.with_name("child")
    server.write_text(
        f"{TALKS} pid = os.fork(); pid and open({str(child)!r}, 'w').write(str(pid)); "
        "time.sleep(600)"
    )
    with running_server():
        while not (child.exists() and child.read_text()):
            time.sleep(0.02)
    os.kill(int(child.read_text()), signal.SIGKILL)  # It is there to this moment.


def test_a_server_that_ends_is_quoted(server: Path) -> None:
    server.write_text("print('ready'); exit('the reason')")
    with pytest.raises(ServerError, match="did not start:\nthe reason"), running_server():
        pass


def test_a_server_that_is_never_ready_is_ended(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "START_LIMIT_S", 1.0)
    server.write_text("import time; time.sleep(600)")
    with pytest.raises(ServerError, match=r"not ready within 1 s"), running_server():
        pass
