"""A real server one of whose engines fails at every step from some moment on."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from command_process import WAIT_S, CommandProcess
from test_null_cluster import GREEDY, WORDS, complete
from test_rejoin import free_port

from splitwise.engine.faulty import FAULTS_VARIABLE
from splitwise.engine.null.tokens import continuation

PROMPTS = [list(range(4, 5 + i % 60)) for i in range(120)]


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FAULTS_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.fixture(params=["--mixed=2", "--mixed=0"])
def server(request: pytest.FixtureRequest, faults: Path) -> Iterator[tuple[CommandProcess, str]]:
    port = free_port()
    pools = [request.param] if request.param == "--mixed=2" else ["--prompt=2", "--token=2"]
    null = ["--engine=null", "--null-iteration-s=0.005", "--null-prompt-token-s=0.0001"]
    options = [f"--port={port}", "--max-stall-s=2", *pools, *null]
    process = CommandProcess("serve", *options, cluster_key="a key")
    try:
        process.wait_for("ready: ")
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()


def serve_all(url: str) -> None:
    with httpx.Client(base_url=url, timeout=WAIT_S) as client, ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda prompt: complete(client, prompt, temperature=0), PROMPTS)
        for prompt, tokens in zip(PROMPTS, answers, strict=True):
            assert tokens == continuation(prompt, 40, GREEDY, WORDS)


def test_no_request_is_lost_and_the_worker_is_replaced(
    server: tuple[CommandProcess, str], faults: Path
) -> None:
    process, url = server
    name = "mixed-1" if "mixed-1 joined" in process.log else "token-1"
    breaking = threading.Timer(0.3, (faults / name).write_text, ("step",))
    breaking.start()
    serve_all(url)
    process.wait_for("this worker ends")
    process.wait_for(f"machine {name} joined", times=2)
    serve_all(url)  # it was started again, and is as sick
    os.unlink(faults / name)
    serve_all(url)
    assert "given up" not in process.log


def test_a_worker_whose_engine_hangs_while_it_reports_is_replaced(
    server: tuple[CommandProcess, str], faults: Path
) -> None:
    process, url = server
    name = "mixed-1" if "mixed-1 joined" in process.log else "prompt-1"
    threading.Timer(0.3, (faults / name).write_text, ("hang",)).start()
    serve_all(url)
    assert f"machine {name} lost: it reports, but computes nothing" in process.log


def test_a_worker_of_elsewhere_whose_engine_hangs_ends(faults: Path) -> None:
    """Nobody kills it; what watches it there, as systemd does, can start it anew."""
    port, join = free_port(), free_port()
    null = "--engine=null"
    serve = ["serve", f"--port={port}", f"--scheduler-port={join}", "--mixed=1", "--max-stall-s=2"]
    server = CommandProcess(*serve, "--external-workers=1", null, cluster_key="a key")
    server.wait_for("waiting for 1 workers")
    worker = CommandProcess(
        *("worker", f"--join=127.0.0.1:{join}", "--machine-id=elsewhere", "--max-stall-s=2", null),
        cluster_key="a key",
    )
    try:
        server.wait_for("ready: ")
        (faults / "elsewhere").write_text("hang")
        serve_all(f"http://127.0.0.1:{port}")
        worker.wait_for("the engine has done nothing for 2 s")
        assert worker.wait() == 1
    finally:
        worker.kill()
        server.kill()
