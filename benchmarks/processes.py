"""What the kernel says of a process, and a port for one."""

import random
import socket
from contextlib import suppress

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


def free_port() -> int:
    """A port of loopback below those that the kernel gives to whoever connects: one of them could
    be in use by the time that a server listens."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
