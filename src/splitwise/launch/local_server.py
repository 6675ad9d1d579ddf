"""A whole server as a child process, for scripts, tests and benchmarks."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Final

READY_PREFIX: Final = "ready: "
START_LIMIT_S: Final = 600.0
STOP_LIMIT_S: Final = 60.0  # more than the server takes to drain


class ServerError(Exception):
    """The server did not start; the message ends with its own last words."""


@contextmanager
def running_server(*arguments: str) -> Iterator[str]:
    """Run ``splitwise serve ARGUMENTS`` on a free loopback port; yields its base URL.

    On leaving, the server gets SIGINT (as by Ctrl-C) and has ``STOP_LIMIT_S`` to end.

    Raises:
        ServerError: it ended, or was not ready in time.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "splitwise.cli.main", "serve", "--port=0", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None and process.stderr is not None
    words: list[str] = []
    relay = threading.Thread(target=_relay, args=(process.stderr, words), daemon=True)
    relay.start()
    deadline = threading.Timer(START_LIMIT_S, process.kill)
    deadline.start()
    try:
        try:
            url = _base_url(process.stdout, words)
        finally:
            deadline.cancel()
        yield url
    finally:
        _stop(process)
        relay.join()
        process.stdout.close()
        process.stderr.close()


def _base_url(output: IO[str], words: list[str]) -> str:
    for line in output:
        if line.startswith(READY_PREFIX):
            return line.removeprefix(READY_PREFIX).strip()
    raise ServerError("the server did not start:\n" + "".join(words[-20:]))


def _relay(source: IO[str], words: list[str]) -> None:
    for line in source:
        words.append(line)
        sys.stderr.write(line)


def _stop(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
