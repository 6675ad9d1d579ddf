"""GPUs by their data sheets, for machines nobody has measured."""

import re
from dataclasses import dataclass
from typing import Final

from splitwise.hardware.errors import HardwareError

GIB: Final = 2**30


@dataclass(frozen=True)
class Gpu:
    """What the maker says of one GPU; dense 16-bit arithmetic, both NVLink directions.

    ``dollars_per_hour`` is None where no source is at hand: then the user names a price.
    """

    flops_per_s: float
    memory_bytes: float
    memory_bytes_per_s: float
    watts: float
    nvlink_bytes_per_s: float
    link: str
    source: str
    dollars_per_hour: float | None = None


GPUS: Final[dict[str, Gpu]] = {
    "a100": Gpu(
        312e12,
        80 * GIB,
        2039e9,
        400.0,
        600e9,
        "infiniband-200",
        "NVIDIA A100 80GB SXM data sheet; price: Splitwise, ISCA 2024",
        17.6 / 8,
    ),
    "h100": Gpu(
        989.5e12,
        80 * GIB,
        3352e9,
        700.0,
        900e9,
        "infiniband-400",
        "NVIDIA H100 SXM data sheet, bandwidth as in Splitwise, ISCA 2024; price: the same",
        38.0 / 8,
    ),
    "h200": Gpu(
        989.5e12,
        141e9,
        4800e9,
        700.0,
        900e9,
        "infiniband-400",
        "NVIDIA H200 SXM data sheet",
    ),
    "b200": Gpu(
        2250e12,
        180e9,
        8000e9,
        1000.0,
        1800e9,
        "infiniband-400",
        "NVIDIA HGX B200 data sheet (8 GPUs: 36 PFLOPS of sparse 16-bit arithmetic, 1.44 TB)",
    ),
}


def gpu_named(name: str) -> Gpu:
    """The GPU of that name; HardwareError if it is not built in."""
    if name not in GPUS:
        raise HardwareError(f"gpu {name!r}: choose from {', '.join(GPUS)}")
    return GPUS[name]


@dataclass(frozen=True)
class GpuMachine:
    """A machine of ``gpus`` equal GPUs; without ``dollars_per_hour``, at the GPUs' known price."""

    gpus: int
    kind: str
    dollars_per_hour: float | None = None

    @property
    def gpu(self) -> Gpu:
        """The data sheet of one of its GPUs."""
        return gpu_named(self.kind)

    @property
    def price(self) -> float:
        """Dollars an hour of the whole machine; HardwareError where nobody named a price."""
        if self.dollars_per_hour is not None:
            return self.dollars_per_hour
        if self.gpu.dollars_per_hour is None:
            raise HardwareError(
                f"dollars_per_hour: no price of {self.kind} is known; add yours to the machine, "
                f"as in {self.gpus}x{self.kind}@32"
            )
        return self.gpus * self.gpu.dollars_per_hour


def parse_machine(text: str) -> GpuMachine:
    """The machine that ``8xh100`` or, with dollars an hour, ``8xh200@32.5`` means.

    Raises:
        HardwareError: another form, or an unknown GPU.
    """
    match = re.fullmatch(r"(\d+)x(\w+)(?:@(\d+(?:\.\d+)?))?", text)
    if match is None or int(match[1]) == 0:
        raise HardwareError(
            f"machine {text!r}: write GPUsxKIND[@DOLLARS_PER_HOUR], such as 8xh100 or 8xh200@32"
        )
    gpu_named(match[2])
    return GpuMachine(int(match[1]), match[2], float(match[3]) if match[3] else None)
