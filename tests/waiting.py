"""Waiting for what nothing announces, with a deadline."""

import time
from collections.abc import Callable

WAIT_S = 20.0


def eventually(condition: Callable[[], bool], pause_s: float = 0.001) -> None:
    """Ask every ``pause_s`` until it is so."""
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came to be"
        time.sleep(pause_s)
