"""Keys, deadlines and draining of a whole server."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from command_process import ready_server

KEY = "sk-of-this-test"
END_S = 60
LONG = {"prompt": "Once upon a time", "max_tokens": 1800, "ignore_eos": True}
COMPLETIONS = "/v1/completions"


@dataclass
class Server:
    process: "subprocess.Popen[str]"
    http: httpx.Client
    log: Path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A split server with a key, whose open metrics say what its machines hold."""
    arguments = "--engine=null", "--null-iteration-s=0.02", "--open-metrics", "--drain-s=45"
    keyed = os.environ | {"SPLITWISE_API_KEY": KEY}
    with (
        ready_server(*arguments, log=tmp_path / "log", environment=keyed) as (process, url),
        httpx.Client(base_url=url, timeout=60, headers={"Authorization": f"Bearer {KEY}"}) as http,
    ):
        yield Server(process, http, tmp_path / "log")


def cache_usage(http: httpx.Client) -> list[float]:
    text = http.get("/metrics").text
    return [float(x) for x in re.findall(r"^splitwise:kv_cache_usage_perc{.*} (\S+)$", text, re.M)]


def wait_for_usage(http: httpx.Client, used: bool) -> None:
    end_s = time.monotonic() + END_S
    while any(cache_usage(http)) is not used:
        assert time.monotonic() < end_s, f"cache in use: {cache_usage(http)}"
        time.sleep(0.05)  # another process's state can only be polled


def test_a_deadline_frees_the_machines_and_sigterm_drains_them(server: Server) -> None:
    http = server.http
    pid = server.process.pid
    workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(workers) == 2
    assert not any(KEY.encode() in Path(f"/proc/{w}/environ").read_bytes() for w in workers)
    assert httpx.post(f"{http.base_url}{COMPLETIONS}", json=LONG).status_code == 401

    limit = {"X-Request-Timeout": "3"}
    with http.stream("POST", COMPLETIONS, json=LONG | {"stream": True}, headers=limit) as answer:
        lines = answer.iter_lines()
        assert "text" in next(lines)
        wait_for_usage(http, used=True)
        last = [line for line in lines if line][-1]
    assert '"code":"timeout"' in last
    wait_for_usage(http, used=False)
    assert len(cache_usage(http)) == 2
    assert http.post(COMPLETIONS, json=LONG, headers=limit).status_code == 504
    wait_for_usage(http, used=False)

    body = LONG | {"max_tokens": 60, "stream": True, "return_token_ids": True}
    with http.stream("POST", COMPLETIONS, json=body) as answer:
        lines = answer.iter_lines()
        assert "text" in next(lines)
        server.process.send_signal(signal.SIGTERM)
        end_s = time.monotonic() + END_S
        while (refused := http.post(COMPLETIONS, json=LONG | {"max_tokens": 1})).is_success:
            assert time.monotonic() < end_s  # the signal is on its way
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in rest[-2]
    assert server.process.wait(END_S) == 0
    assert KEY not in server.log.read_text()
