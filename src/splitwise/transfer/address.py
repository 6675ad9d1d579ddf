"""Where a receiver is reached, and whether that is on this host."""

import functools
import os
import socket
from pathlib import Path
from typing import Annotated

import msgspec


class ReceiverAddress(msgspec.Struct, frozen=True):
    """All that a sender must know to dial a receiver. Plain data: others pass it on."""

    machine_id: str
    host: Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z.:%_-]{1,255}$")]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    """TCP."""
    unix_name: Annotated[str, msgspec.Meta(pattern="^[0-9a-z-]{0,100}$")]
    """Name of an abstract unix socket (its leading NUL left out); empty where there is none."""
    host_identity: str
    device: str
    """``cpu`` or ``cuda:N``."""
    transports: tuple[str, ...]
    """What the receiver offers, best first."""
    rdma: bool = False
    """It has a device for RDMA."""
    tls: bool = False
    """Its TCP connections speak TLS."""
    sends: str = ""
    """The one transport that its machine's own sender takes; empty where it takes what fits."""


def own_address(host: str, port: int) -> str:
    """This host's address on its way to ``host``, under which that way's other hosts reach it.

    Raises:
        OSError: there is no such host, or no way to it.
    """
    family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)  # of a datagram socket: picks the way, and sends nothing
        return str(probe.getsockname()[0])


@functools.cache
def host_identity() -> str:
    """Equal in two processes that share a kernel and its abstract unix sockets."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot_id}/{os.readlink('/proc/self/ns/net')}"
