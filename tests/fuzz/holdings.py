"""What processes hold: memory and descriptors."""

from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Holdings:
    """Of one process."""

    rss_mib: float
    files: int

    @classmethod
    def of(cls, pid: int) -> "Holdings":
        process = psutil.Process(pid)
        return cls(round(process.memory_info().rss / 2**20, 1), process.num_fds())


def descendants(pid: int) -> list[int]:
    """The processes that ``pid`` started, those that they started, and so on."""
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def holdings(pids: list[int]) -> dict[int, Holdings]:
    return {pid: Holdings.of(pid) for pid in pids}
