"""A whole server as a child process, for scripts, tests and benchmarks."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from splitwise.launch.lines import CHUNK_BYTES, Lines

READY_PREFIX: Final = "ready: "
START_LIMIT_S: Final = 1900.0  # more than the server gives its workers
STOP_LIMIT_S: Final = 60.0  # more than the server takes to drain
LAST_WORDS_S: Final = 5.0
KEPT_LINES: Final = 20


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
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None and process.stderr is not None
    said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    last_words: deque[str] = deque(maxlen=KEPT_LINES)

    def pass_on(line: str | None) -> None:
        if line is not None:
            last_words.append(line)
            sys.stderr.write(f"{line}\n")

    listeners = [
        _listen(process.stdout.fileno(), said.put),
        _listen(process.stderr.fileno(), pass_on),
    ]
    try:
        yield _base_url(said, last_words, listeners)
    finally:
        try:
            _stop(process)
        finally:
            for listener in listeners:  # A child of the server's may hold its outputs.
                listener.join(LAST_WORDS_S)
            if not any(listener.is_alive() for listener in listeners):
                process.stdout.close()
                process.stderr.close()


def _listen(output: int, on_line: Callable[[str | None], None]) -> threading.Thread:
    """Read a process's output as long as there is one, line by line; None is its end."""

    def listen() -> None:
        lines = Lines()
        while chunk := os.read(output, CHUNK_BYTES):
            for line in lines.feed(chunk):
                on_line(line)
        for line in lines.rest():
            on_line(line)
        on_line(None)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    return thread


def _base_url(
    said: "queue.SimpleQueue[str | None]", last_words: deque[str], listeners: list[threading.Thread]
) -> str:
    try:
        while (line := said.get(timeout=START_LIMIT_S)) is not None:
            if line.startswith(READY_PREFIX):
                return line.removeprefix(READY_PREFIX).strip()
    except queue.Empty:
        raise ServerError(f"the server was not ready within {START_LIMIT_S:g} s") from None
    for listener in listeners:
        listener.join(LAST_WORDS_S)
    raise ServerError("the server did not start:\n" + "\n".join(last_words))


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
