"""Joins network namespaces by a switch in user space, whose ways can be slow, lossy and cut.

A process of its own, told on its standard input: ``delay MS JITTER_MS``, ``loss SHARE``,
``cut ADDRESS``, ``mend ADDRESS``; it answers each line with ``ok``. Not every kernel has netem.

    python packet_switch.py NAMESPACE=ADDRESS ...
"""

import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

DEVICE = "eth0"
MTU_BYTES = 9000
CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
LIBC = ctypes.CDLL(None, use_errno=True)


def open_device(namespace: str, address: str) -> int:
    """A TUN device in the namespace, up and with its address; this process gets its packets."""
    with Path(f"/run/netns/{namespace}").open() as file:
        if LIBC.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
    for words in (
        ["link", "set", DEVICE, "mtu", str(MTU_BYTES), "txqueuelen", "10000", "up"],
        ["addr", "add", f"{address}/24", "dev", DEVICE],
    ):
        subprocess.run(["ip", *words], check=True, timeout=10)
    return device


class PacketSwitch:
    def __init__(self, devices: dict[bytes, int]) -> None:
        """``devices`` by the four bytes of their addresses."""
        self._devices = devices
        self._addresses = {device: address for address, device in devices.items()}
        self._delay_s = self._jitter_s = self._loss = 0.0
        self._cut: set[bytes] = set()
        self._due: list[tuple[float, int, bytes, bytes]] = []
        self._numbers = itertools.count()

    def obey(self, line: str) -> None:
        match line.split():
            case ["delay", delay_ms, jitter_ms]:
                self._delay_s, self._jitter_s = float(delay_ms) / 1e3, float(jitter_ms) / 1e3
            case ["loss", share]:
                self._loss = float(share)
            case ["cut", address]:
                self._cut.add(socket.inet_aton(address))
            case ["mend", address]:
                self._cut.discard(socket.inet_aton(address))
            case _:
                raise ValueError(f"cannot obey {line!r}")

    def take(self, device: int) -> None:
        """All packets that the namespace of this device has sent."""
        while True:
            try:
                packet = os.read(device, MTU_BYTES)
            except BlockingIOError:
                return
            target = packet[16:20]
            is_cut = self._addresses[device] in self._cut or target in self._cut
            if packet[0] >> 4 != 4 or is_cut or random.random() < self._loss:
                continue
            late_s = self._delay_s + random.uniform(0, self._jitter_s)
            entry = (time.monotonic() + late_s, next(self._numbers), target, packet)
            heapq.heappush(self._due, entry)

    def deliver(self) -> float | None:
        """What is due; returns the seconds until the next is."""
        while self._due:
            left_s = self._due[0][0] - time.monotonic()
            if left_s > 0:
                return left_s
            _, _, target, packet = heapq.heappop(self._due)
            if target in self._devices:
                os.write(self._devices[target], packet)
        return None


def main() -> None:
    named = [argument.split("=") for argument in sys.argv[1:]]
    devices = {socket.inet_aton(address): open_device(name, address) for name, address in named}
    switch = PacketSwitch(devices)
    print("ok", flush=True)
    while True:
        readable, _, _ = select.select([*devices.values(), sys.stdin], [], [], switch.deliver())
        for one in readable:
            if isinstance(one, int):
                switch.take(one)
                continue
            line = sys.stdin.readline()
            if not line:
                return
            switch.obey(line)
            print("ok", flush=True)


if __name__ == "__main__":
    main()
