"""Iteration times of a machine nobody has measured, from its data sheet and the model's sizes.

An iteration computes and reads its weights at the same time, so it takes the longer of the two;
then come the two sums over GPUs that each layer needs, and a fixed cost a layer and iteration.
How near GPUs come to their data sheets is ``Efficiency``; ``roofline_check`` fits it to measured
points, and says how far off the answer is.
"""

from dataclasses import dataclass

import numpy as np

from splitwise.hardware.errors import HardwareError
from splitwise.hardware.gpus import Gpu, GpuMachine
from splitwise.hardware.iteration_times import MAX_DECODES, MIXED_FACTOR, Floats, IterationTimes
from splitwise.hardware.links import link_of
from splitwise.hardware.model_shape import ModelShape

PROMPT_KNOTS = np.array([1.0, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072])
IDLE_FRACTION = 0.2
"""Of the power limit; an assumption, as in the measured profiles."""
DECODE_FRACTION = 0.6
"""Of the power limit, flat in the batch size: near the higher of the two shares measured on A100,
0.64 with BLOOM-176B and 0.43 with Llama2-70B."""


@dataclass(frozen=True)
class Efficiency:
    """Shares of the data sheet's figures that are reached, and what software adds.

    The defaults are assumptions for an engine of today, not measurements.
    """

    compute: float = 0.6
    memory: float = 0.75
    nvlink: float = 0.6
    layer_overhead_s: float = 30e-6

    def __post_init__(self) -> None:
        for name in ("compute", "memory", "nvlink"):
            if not 0 < getattr(self, name) <= 1:
                raise HardwareError(f"{name} is {getattr(self, name)}; use a share, 0 < share <= 1")
        if self.layer_overhead_s < 0:
            raise HardwareError(f"layer_overhead_s is {self.layer_overhead_s}; use 0 or more")


USUAL = Efficiency()


def prompt_seconds(
    shape: ModelShape, gpu: Gpu, gpus: int, tokens: Floats, requests: Floats | float = 1.0
) -> tuple[Floats, Floats, Floats]:
    """Compute, memory and NVLink seconds of prompts at the data sheet's speed.

    ``requests`` equal prompts make up ``tokens``; each attends to itself only.
    """
    # Every score and every weighted value is a product and a sum, and half the scores are masked.
    attention = 2 * shape.layers * shape.attention_width * tokens * tokens / requests
    flops = 2 * shape.active_parameters * tokens + attention
    compute_s = flops / (gpus * gpu.flops_per_s)
    memory_s = np.full_like(compute_s, shape.weights_bytes / (gpus * gpu.memory_bytes_per_s))
    return compute_s, memory_s, all_reduce_seconds(shape, gpu, gpus, tokens)


def all_reduce_seconds(shape: ModelShape, gpu: Gpu, gpus: int, tokens: Floats) -> Floats:
    """Seconds of two ring sums a layer over 16-bit activations; none on one GPU."""
    size_bytes = 2 * shape.layers * tokens * shape.hidden * 2
    one_way = gpu.nvlink_bytes_per_s / 2
    return np.asarray(size_bytes * 2 * (gpus - 1) / gpus / one_way)


def decode_seconds(shape: ModelShape, gpu: Gpu, gpus: int, batch: Floats) -> Floats:
    """Seconds, at the data sheet's speed, in which decodes read the weights or compute."""
    # Each further request meets further experts, until all are read.
    met = 1 - (1 - shape.active_parameters / shape.parameters) ** batch
    is_sparse = shape.active_parameters < 0.8 * shape.parameters
    read_bytes = shape.weights_bytes * (met if is_sparse else 1.0)
    memory_s = read_bytes / (gpus * gpu.memory_bytes_per_s)
    compute_s = 2 * shape.active_parameters * batch / (gpus * gpu.flops_per_s)
    return np.asarray(np.maximum(memory_s, compute_s))


def roofline_times(
    shape: ModelShape,
    machine: GpuMachine,
    efficiency: Efficiency = USUAL,
) -> IterationTimes:
    """Times of a machine with the model split over all its GPUs.

    Raises:
        HardwareError: no price is known, or the weights leave no memory.
    """
    gpu, gpus = machine.gpu, machine.gpus
    overhead_s = shape.layers * efficiency.layer_overhead_s
    compute_s, memory_s, nvlink_s = prompt_seconds(shape, gpu, gpus, PROMPT_KNOTS)
    prompt_s = np.maximum(compute_s / efficiency.compute, memory_s / efficiency.memory)
    batch = np.arange(MAX_DECODES + 1, dtype=np.float64)
    decode_s = decode_seconds(shape, gpu, gpus, batch) / efficiency.memory + overhead_s
    decode_s += all_reduce_seconds(shape, gpu, gpus, batch) / efficiency.nvlink
    decode_s[0] = 0.0
    bandwidth = gpus * gpu.memory_bytes_per_s * efficiency.memory
    link = link_of(gpu.link, gpus)
    busy = compute_s / efficiency.compute / prompt_s
    watts = gpus * gpu.watts
    return IterationTimes(
        prompt_tokens=PROMPT_KNOTS,
        prompt_s=prompt_s + nvlink_s / efficiency.nvlink + overhead_s,
        decode_s=decode_s,
        decode_s_per_context_token=np.full(MAX_DECODES + 1, shape.kv_bytes_per_token / bandwidth),
        mixed_factor=MIXED_FACTOR,
        kv_capacity_tokens=int(gpus * gpu.memory_bytes - shape.weights_bytes)
        // shape.kv_bytes_per_token,
        kv_bytes_per_token=float(shape.kv_bytes_per_token),
        layers=shape.layers,
        power_tokens=PROMPT_KNOTS,
        prompt_watts=watts * (DECODE_FRACTION + (1 - DECODE_FRACTION) * busy),
        decode_watts=watts * DECODE_FRACTION,
        idle_watts=watts * IDLE_FRACTION,
        provisioned_watts=watts,
        dollars_per_hour=machine.price,
        gpus=gpus,
        link_bytes_per_s=link.bytes_per_s,
        link_latency_s=link.latency_s,
    )
