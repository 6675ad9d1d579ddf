"""What the kernel says of a process."""

import psutil


def cpu_s(pid: int) -> float:
    """User and system time of all its threads so far."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def resident_mib(pid: int) -> float:
    """Its memory that lies in RAM, without what it shares with others by mapping a file."""
    memory = psutil.Process(pid).memory_info()
    return float(memory.rss - memory.shared) / 2**20


def children(pid: int) -> list[int]:
    """Processes that it started and that still run."""
    return [child.pid for child in psutil.Process(pid).children()]
