"""Links between machines: how fast a kind carries a cache."""

from dataclasses import dataclass
from typing import Final

from splitwise.hardware.errors import HardwareError

LATENCY_S: Final = 5e-6
"""From a put's start to its arrival over RDMA: an assumption of the usual size."""


@dataclass(frozen=True)
class Link:
    """One direction of a machine's link: its bandwidth, all GPUs together, and its latency."""

    bytes_per_s: float
    latency_s: float

    def transfer_time_s(self, size_bytes: float) -> float:
        """Seconds for so many bytes when nothing else is on the link."""
        return self.latency_s + size_bytes / self.bytes_per_s


INFINIBAND_GBPS: Final = {"infiniband-200": 200.0, "infiniband-400": 400.0}
"""Gigabits a second and GPU. A DGX-A100 has the first, a DGX-H100 the second (Splitwise, ISCA
2024, table of hardware)."""


def link_of(kind: str, gpus: int = 8) -> Link:
    """The link of a machine that has one adapter of that kind a GPU.

    Raises:
        HardwareError: an unknown kind, or no GPU.
    """
    if kind not in INFINIBAND_GBPS:
        raise HardwareError(f"link {kind!r}: choose from {', '.join(INFINIBAND_GBPS)}")
    if gpus < 1:
        raise HardwareError(f"gpus is {gpus}; a link needs at least 1")
    return Link(gpus * INFINIBAND_GBPS[kind] * 1e9 / 8, LATENCY_S)


def slower(one: Link, other: Link) -> Link:
    """What two unlike machines have between them."""
    return Link(min(one.bytes_per_s, other.bytes_per_s), max(one.latency_s, other.latency_s))
