"""What a profile file says: machines, models, and points measured on them.

One JSON file is one profile. Its fields are those of ``ProfileFile``; unknown ones are refused.
"""

from pathlib import Path
from typing import Final

import msgspec

from splitwise.hardware.errors import HardwareError

FORMAT: Final = 1


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the file."""


class Price(Record, frozen=True):
    """What a machine costs, dollars an hour, and the watts that are set aside for it."""

    dollars_per_hour: float
    provisioned_watts: float


class Machine(Record, frozen=True):
    """A machine kind: equal GPUs and their links.

    ``points_of`` takes another machine's times, multiplied by the two factors.
    ``power_points_of`` takes another machine's fractions of the power limit.
    ``gpu_cap_watts`` bounds what a GPU draws; 0 means ``gpu_watts``.
    """

    gpus: int
    gpu_memory_bytes: int
    gpu_watts: float
    link_bytes_per_s: float
    prices: dict[str, Price]
    gpu_cap_watts: float = 0.0
    idle_power_fraction: float = 0.2
    link_latency_s: float = 0.0
    points_of: str = ""
    power_points_of: str = ""
    prompt_time_factor: float = 1.0
    token_time_factor: float = 1.0


class Model(Record, frozen=True):
    """Sizes of a model.

    ``published_kv_bytes_per_token`` is what the ``published-2024`` rule counts; 0: the same.
    """

    weights_bytes: int
    kv_bytes_per_token: int
    layers: int
    published_kv_bytes_per_token: int = 0


class Point(Record, frozen=True):
    """The median of ``runs`` runs of ``batch`` equal requests."""

    machine: str
    model: str
    prompt_tokens: int
    batch: int
    output_tokens: int
    prompt_ms: float
    token_ms: float
    runs: int = 1
    peak_power_fraction: float | None = None
    average_power_fraction: float | None = None


class Knot(Record, frozen=True):
    """Medians over all single runs of ``tokens`` = prompt tokens x batch.

    Where runs of several kinds fall on one number of tokens, their joint median cannot be had from
    the points, which are medians of a kind each. Read by the rule ``published-2024``.
    """

    machine: str
    model: str
    tokens: int
    prompt_ms: float
    token_ms: float | None = None


class ProfileFile(Record, frozen=True):
    """A whole file. ``rule`` says how points become times: see ``curves.RULES``."""

    format: int
    source: str
    machines: dict[str, Machine]
    models: dict[str, Model]
    points: list[Point]
    knots: list[Knot] = []
    rule: str = "measured"


def read_profile_file(path: Path) -> ProfileFile:
    """Read and validate a file.

    Raises:
        HardwareError: unreadable, or a field is missing, unknown, or of no sensible value.
    """
    try:
        content = msgspec.json.decode(path.read_bytes(), type=ProfileFile)
    except OSError as error:
        raise HardwareError(f"{path}: {error.strerror}; name a profile file that exists") from error
    except msgspec.DecodeError as error:
        raise HardwareError(
            f"{path}: {error}; its fields are those of splitwise.hardware.profile_file"
        ) from error
    try:
        _validate(content)
    except HardwareError as error:
        raise HardwareError(f"{path}: {error}") from error
    return content


def _validate(content: ProfileFile) -> None:
    if content.format != FORMAT:
        raise HardwareError(f"format is {content.format}; this version reads {FORMAT}")
    for name, machine in content.machines.items():
        _validate_machine(f"machines.{name}", machine, content)
    for name, model in content.models.items():
        _above_zero(f"models.{name}", model, "weights_bytes", "kv_bytes_per_token", "layers")
    for number, point in enumerate(content.points):
        _validate_point(f"points[{number}]", point, content)
    for number, knot in enumerate(content.knots):
        where = f"knots[{number}]"
        _known(f"{where}.machine", knot.machine, content.machines)
        _known(f"{where}.model", knot.model, content.models)
        _above_zero(where, knot, "tokens", "prompt_ms")


def _validate_machine(where: str, machine: Machine, content: ProfileFile) -> None:
    _above_zero(where, machine, "gpus", "gpu_memory_bytes", "gpu_watts", "link_bytes_per_s")
    _above_zero(where, machine, "prompt_time_factor", "token_time_factor")
    for field in ("gpu_cap_watts", "idle_power_fraction", "link_latency_s"):
        if getattr(machine, field) < 0:
            raise HardwareError(f"{where}.{field} is {getattr(machine, field)}; use 0 or more")
    if not machine.prices:
        raise HardwareError(f"{where}.prices is empty; add one set, such as paper")
    for name, price in machine.prices.items():
        _above_zero(f"{where}.prices.{name}", price, "dollars_per_hour", "provisioned_watts")
    for field in ("points_of", "power_points_of"):
        other = getattr(machine, field)
        if other:
            _known(f"{where}.{field}", other, content.machines)


def _validate_point(where: str, point: Point, content: ProfileFile) -> None:
    _known(f"{where}.machine", point.machine, content.machines)
    _known(f"{where}.model", point.model, content.models)
    _above_zero(where, point, "prompt_tokens", "batch", "output_tokens", "runs")
    _above_zero(where, point, "prompt_ms", "token_ms")
    for field in ("peak_power_fraction", "average_power_fraction"):
        value = getattr(point, field)
        if value is not None and not 0 < value < 2:
            raise HardwareError(f"{where}.{field} is {value}; use a fraction of the power limit")


def _above_zero(where: str, record: Record, *fields: str) -> None:
    for field in fields:
        value = getattr(record, field)
        if not 0 < value < float("inf"):
            raise HardwareError(f"{where}.{field} is {value}; use a number above 0")


def _known(where: str, name: str, names: dict[str, Machine] | dict[str, Model]) -> None:
    if name not in names:
        raise HardwareError(f"{where} is {name!r}; choose from {', '.join(names)}")
