"""Names of shared memory that a test leaves behind."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WAIT_S = 60


@contextmanager
def no_shared_name_left() -> Iterator[None]:
    """What a test adds to /dev/shm is gone after it. Tests that run beside it may have names there
    for a while; one that is left behind stays."""
    folder = Path("/dev/shm")
    before = set(folder.iterdir())
    yield
    deadline_s = time.monotonic() + WAIT_S
    while left := set(folder.iterdir()) - before:
        assert time.monotonic() < deadline_s, f"left behind: {left}"
        time.sleep(0.1)
