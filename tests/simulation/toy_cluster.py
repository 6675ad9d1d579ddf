"""A machine whose times are round numbers, and loads made by hand."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitwise.hardware.iteration_times import IterationTimes
from splitwise.scheduling.pool import Pool
from splitwise.simulation.simulate import MachineGroup


@dataclass(frozen=True)
class Load:
    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]


def load(*rows: tuple[float, int, int]) -> Load:
    arrival, prompt, output = zip(*rows, strict=True)
    return Load(np.array(arrival, dtype=float), np.array(prompt), np.array(output))


def times(
    prompt_s_per_token: float = 0.001,
    decode_s: float = 0.1,
    context_s: float = 0.0,
    kv_capacity_tokens: int = 100_000,
    link_bytes_per_s: float = 1e6,
    link_latency_s: float = 0.0,
) -> IterationTimes:
    decodes = np.full(513, decode_s)
    decodes[0] = 0
    return IterationTimes(
        prompt_tokens=np.array([0.0, 1000.0]),
        prompt_s=np.array([0.0, 1000.0]) * prompt_s_per_token,
        decode_s=decodes,
        decode_s_per_context_token=np.full(513, context_s),
        mixed_factor=1.1,
        kv_capacity_tokens=kv_capacity_tokens,
        kv_bytes_per_token=1000.0,
        layers=10,
        power_tokens=np.array([1.0]),
        prompt_watts=np.array([500.0]),
        decode_watts=300.0,
        idle_watts=50.0,
        provisioned_watts=1000.0,
        dollars_per_hour=1.0,
        gpus=8,
        link_bytes_per_s=link_bytes_per_s,
        link_latency_s=link_latency_s,
    )


def mixed(count: int = 1, **changes: float) -> list[MachineGroup]:
    return [MachineGroup("toy", times(**changes), Pool.MIXED, count)]  # type: ignore[arg-type]


def split(prompt: int = 1, token: int = 1, **changes: float) -> list[MachineGroup]:
    kind = times(**changes)  # type: ignore[arg-type]
    return [
        MachineGroup("toy-prompt", kind, Pool.PROMPT, prompt),
        MachineGroup("toy-token", kind, Pool.TOKEN, token),
    ]
