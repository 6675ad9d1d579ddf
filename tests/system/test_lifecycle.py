"""Starting, ending, failing to start, and losing a worker: with real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from command_process import ready_server

from splitwise.launch.local_server import ServerError, running_server

SERVE = [sys.executable, "-m", "splitwise.cli.main", "serve"]
END_S = 30


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + END_S
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still running: {[p for p in pids if is_running(p)]}"
        time.sleep(0.1)  # Another process's end can only be polled.


def start(*arguments: str) -> tuple["subprocess.Popen[str]", str, list[int]]:
    """A split server; returns its process, base URL and workers."""
    process = subprocess.Popen(
        [*SERVE, "--port=0", "--drain-s=1", *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    url = process.stdout.readline().removeprefix("ready: ").strip()
    workers = children_of(process.pid)
    assert len(workers) == 2
    return process, url, workers


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_server(how: signal.Signals) -> None:
    process, url, workers = start("--engine=null", "--null-iteration-s=0.02")
    try:
        with httpx.stream(
            "POST",
            f"{url}/v1/completions",
            json={
                "prompt": "Once upon a time",
                "max_tokens": 2000,
                "ignore_eos": True,
                "stream": True,
            },
            timeout=60,
        ) as response:
            next(response.iter_bytes())  # It is in the middle of something.
            process.send_signal(how)
            code = process.wait(END_S)
        assert code == (-how if how is signal.SIGKILL else 0)
        wait_until_gone(workers)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def test_a_lost_token_machine_does_not_change_the_answer() -> None:
    """Killed in mid-stream: the client goes on reading the tokens it would have had."""
    body = {"prompt": "The first rule is", "max_tokens": 120, "ignore_eos": True, "seed": 3}
    process, url, workers = start()
    token_machine: int | None = workers[1]
    try:
        with httpx.Client(base_url=url, timeout=120) as client:
            expected = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
            text = ""
            with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
                for line in response.iter_lines():
                    if not line.startswith("data: {"):
                        continue
                    text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                    if len(text) > 40 and token_machine is not None:
                        os.kill(token_machine, signal.SIGKILL)
                        token_machine = None
            assert text == expected
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(END_S)
        process.stdout.close()  # type: ignore[union-attr]


TALKATIVE = """
import os, sys
if "worker" in sys.argv:
    for output in (1, 2):
        os.write(output, b"x" * 100_000 + b"\\n")
"""
"""What Python runs at its start where it finds it: here, a worker's first lines are long ones."""


def test_a_worker_that_dies_again_is_started_again_whatever_it_says(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(TALKATIVE)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    body = {"prompt": [5, 6, 7], "max_tokens": 5, "temperature": 0}
    found = os.environ | {"PYTHONPATH": paths}
    arguments = "--engine=null", "--no-change-roles", "--drain-s=1"
    with ready_server(*arguments, log=tmp_path / "log", environment=found) as (process, url):
        expected = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"]
        for _ in range(2):
            os.kill(worker_of(process.pid, "token-0"), signal.SIGKILL)
            time.sleep(3)
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
            assert answer.json()["choices"] == expected
        process.send_signal(signal.SIGINT)
        process.wait(END_S)
    said = (tmp_path / "log").read_text()
    assert said.count("worker token-0 ended (signal SIGKILL") == 2
    assert said.count("(cut at") == 2 * 4  # two outputs of four processes


def worker_of(gateway: int, machine_id: str) -> int:
    """The process of that worker, as soon as there is one."""
    deadline = time.monotonic() + END_S
    while time.monotonic() < deadline:
        for pid in children_of(gateway):
            if f"--machine-id={machine_id}" in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                return pid
        time.sleep(0.05)
    raise AssertionError(f"no worker {machine_id} runs")


def test_a_worker_that_cannot_start_says_why_in_the_parent() -> None:
    result = subprocess.run(
        [*SERVE, "--port=0", "--mixed=1", "--device=cuda:99"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "worker mixed-0 could not start" in last and "cuda" in last.lower()


def test_workers_that_do_not_come_in_time_are_named(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\nif '--machine-id=token-0' in sys.argv: time.sleep(60)"
    )
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [*SERVE, "--port=0", "--engine=null", "--start-limit-s=8"],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "token-0 did not join within 8 s" in last and "--start-limit-s" in last


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=str(port)), running_server(f"--port={port}"):
            pass


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt=1", "--token=0"], "--token 0"),
        (["no-such-model"], "no-such-model"),
        (["--transport=pigeon"], "pigeon"),
        (["--kv-cache-gib=0"], "kv-cache-gib"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], words: str) -> None:
    result = subprocess.run(
        [*SERVE, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode in (1, 2)
    assert words in result.stderr
    assert "Traceback" not in result.stderr
