"""What processes hold: memory and descriptors, read from /proc."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

WAIT_S = 20.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Holdings:
    """Of one process."""

    rss_mib: float
    files: int

    @classmethod
    def of(cls, pid: int) -> "Holdings":
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(round(pages * PAGE_BYTES / 2**20, 1), len(os.listdir(f"/proc/{pid}/fd")))


def descendants(pid: int) -> list[int]:
    """The processes that ``pid`` started, those that they started, and so on."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(c) for task in tasks for c in (task / "children").read_text().split()]
    return [other for child in children for other in (child, *descendants(child))]


def holdings(pids: list[int]) -> dict[int, Holdings]:
    return {pid: Holdings.of(pid) for pid in pids}


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what nothing announces."""
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came to be"
        time.sleep(0.02)
