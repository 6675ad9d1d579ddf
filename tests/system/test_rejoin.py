"""Workers that others start: they outlive a gateway, leave in peace, and may freeze."""

import json
import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
from command_process import WAIT_S, CommandProcess
from test_null_cluster import GREEDY, WORDS

from splitwise.engine.null.tokens import continuation

PROMPT = list(range(4, 90))


def free_port() -> int:
    """Below those that the kernel gives to whoever connects: one of them could be in use by the
    time that the server listens."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def running(*arguments: str) -> Iterator[CommandProcess]:
    null = ("--engine=null", "--null-iteration-s=0.02")
    process = CommandProcess(*arguments, *null, cluster_key="a key")
    try:
        yield process
    finally:
        process.kill()


def gateway(http: int, join: int, workers: int = 1, local: int = 0) -> list[str]:
    ports = [f"--port={http}", f"--scheduler-port={join}"]
    return ["serve", *ports, f"--external-workers={workers}", f"--mixed={local}"]


def complete(port: int, tokens: int) -> list[int]:
    body = {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "return_token_ids": True}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=WAIT_S)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["choices"][0]["token_ids"])


def test_a_worker_outlives_its_gateway() -> None:
    http, join = free_port(), free_port()
    with running(*gateway(http, join)) as first:
        first.wait_for("waiting for 1 workers")
        with running("worker", f"--join=127.0.0.1:{join}", "--machine-id=w") as worker:
            first.wait_for("ready: ")
            first.kill()
            worker.wait_for("dialling again")
            with running(*gateway(http, join)) as second:
                second.wait_for("ready: ")
                assert "machine w joined" in second.log
                assert complete(http, 5) == continuation(PROMPT, 5, GREEDY, WORDS)


def test_a_worker_told_to_end_first_ends_what_it_runs() -> None:
    """And what comes meanwhile waits for another machine."""
    http, join = free_port(), free_port()
    answers: list[list[int]] = []
    with running(*gateway(http, join)) as server:
        server.wait_for("waiting for 1 workers")
        with running("worker", f"--join=127.0.0.1:{join}", "--machine-id=w") as worker:
            server.wait_for("ready: ")
            client = threading.Thread(target=lambda: answers.append(complete(http, 100)))
            client.start()
            metrics = f"http://127.0.0.1:{http}/metrics"
            is_busy = re.compile(r'num_requests_running{machine="w".*} [1-9]')
            deadline_s = time.monotonic() + WAIT_S
            while not is_busy.search(httpx.get(metrics).text):
                assert time.monotonic() < deadline_s, "the request never ran"
                time.sleep(0.05)  # another process's state can only be polled
            worker.popen.send_signal(signal.SIGTERM)
            server.wait_for("machine w: draining")
            late = threading.Thread(target=lambda: answers.append(complete(http, 3)))
            late.start()
            assert worker.popen.wait(WAIT_S) == 0
            client.join(WAIT_S)
            assert answers == [continuation(PROMPT, 100, GREEDY, WORDS)]
        with running("worker", f"--join=127.0.0.1:{join}", "--machine-id=v"):
            late.join(WAIT_S)
            assert answers[1:] == [continuation(PROMPT, 3, GREEDY, WORDS)]


def test_a_frozen_worker_is_replaced_and_nobody_notices() -> None:
    """It is one of the gateway's own: killed as soon as it is silent, and started again."""
    http, join = free_port(), free_port()
    body = {"prompt": PROMPT, "max_tokens": 150, "temperature": 0, "stream": True}
    body["return_token_ids"] = True
    tokens: list[int] = []
    with running(*gateway(http, join, workers=0, local=1)) as server:
        server.wait_for("ready: ")
        children = f"/proc/{server.popen.pid}/task/{server.popen.pid}/children"
        with open(children) as file:
            (worker,) = map(int, file.read().split())
        url = f"http://127.0.0.1:{http}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=WAIT_S) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    tokens += json.loads(line[6:])["choices"][0]["token_ids"]
                if len(tokens) > 20 and worker:
                    os.kill(worker, signal.SIGSTOP)
                    worker = 0
        assert "machine mixed-0 lost: silent" in server.log
        assert "signal SIGKILL" in server.log
        assert tokens == continuation(PROMPT, 150, GREEDY, WORDS)
        server.popen.terminate()
        assert server.popen.wait(WAIT_S) == 0
