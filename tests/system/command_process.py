"""A ``splitwise`` command in a process of its own, and what it says."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

COMMAND = [sys.executable, "-m", "splitwise.cli.main"]
WAIT_S = 90


@contextmanager
def ready_server(
    *arguments: str, log: Path, environment: dict[str, str] | None = None
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """``splitwise serve`` once it is ready, and its URL; ``log`` has its stderr. Killed at the
    end."""
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--port=0", *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ if environment is None else environment,
        )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().removeprefix("ready: ").strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class CommandProcess:
    """``before`` is put before the command, as ``ip netns exec`` is."""

    def __init__(self, *arguments: str, cluster_key: str, before: tuple[str, ...] = ()) -> None:
        self.popen = subprocess.Popen(
            [*before, *COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"SPLITWISE_CLUSTER_KEY": cluster_key, "PYTHONUNBUFFERED": "1"},
        )
        assert self.popen.stdout is not None
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=(self.popen.stdout,))
        self._reader.start()

    def _read(self, output: IO[str]) -> None:
        for line in output:
            sys.stderr.write(line)
            with self._news:
                self._lines.append(line)
                self._news.notify_all()
        output.close()

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def wait_for(self, words: str, times: int = 1) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self.log.count(words) >= times, WAIT_S), self.log

    def wait(self) -> int:
        """Wait for its end, and see to it; returns how it ended."""
        try:
            return self.popen.wait(WAIT_S)
        finally:
            self.kill()

    def end(self) -> int:
        """As by SIGTERM; returns how it ended."""
        self.popen.terminate()
        return self.wait()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()
        self._reader.join()
