"""How far off the roofline model is, against the measured points of the built-in profile.

1. ``assumed``: the default efficiency, which knows nothing of the points.
2. ``fitted``: its two unknowns (share of the arithmetic speed, cost a layer) are fitted to the
   points of A100 alone, prompts of up to 2048 tokens; those of H100 stay unseen.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from splitwise.hardware.gpus import GPUS, Gpu
from splitwise.hardware.iteration_times import Floats
from splitwise.hardware.loading import points_of, profile_contents
from splitwise.hardware.model_shape import ModelShape, model_shape
from splitwise.hardware.profile_file import Point
from splitwise.hardware.roofline import (
    USUAL,
    Efficiency,
    all_reduce_seconds,
    decode_seconds,
    prompt_seconds,
)

BATCH_TOKENS: Final = 2048
"""Prompts are batched up to here; beyond it the measured engine itself grew slow."""

LLAMA2_70B: Final = {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 32000,
    "dtype": "float16",
}
"""Of its config."""

SHAPES: Final[dict[str, ModelShape]] = {
    "llama2-70b": model_shape(LLAMA2_70B),
    "bloom-176b": model_shape(
        {
            "model_type": "bloom",
            "n_embed": 14336,
            "n_layer": 70,
            "num_attention_heads": 112,
            "vocab_size": 250880,
            "dtype": "bfloat16",
        }
    ),
}
"""The models of the built-in profile, by their published sizes."""

MACHINES: Final = {"dgx-a100": "a100", "dgx-h100": "h100"}


@dataclass(frozen=True)
class RooflineError:
    """Predicted against measured times of one machine and model, over ``points`` points.

    ``what`` is decodes, or prompts of up to or over so many tokens together.

    ``median_ratio`` is predicted / measured: under 1 is too fast. ``median_error`` and
    ``worst_error`` are |ratio - 1|.
    """

    efficiency: str
    machine: str
    model: str
    what: str
    points: int
    median_ratio: float
    median_error: float
    worst_error: float


def predict(
    shape: ModelShape, gpu: Gpu, gpus: int, efficiency: Efficiency, points: list[Point]
) -> tuple[Floats, Floats]:
    """Prompt and token seconds of measured points, each of shape [points]."""
    batch = np.array([point.batch for point in points], dtype=np.float64)
    tokens = np.array([point.prompt_tokens for point in points]) * batch
    overhead_s = shape.layers * efficiency.layer_overhead_s
    compute_s, memory_s, nvlink_s = prompt_seconds(shape, gpu, gpus, tokens, batch)
    prompt_s = np.maximum(compute_s / efficiency.compute, memory_s / efficiency.memory)
    context = tokens + batch * np.array([point.output_tokens for point in points]) / 2
    cache_s = context * shape.kv_bytes_per_token / (gpus * gpu.memory_bytes_per_s)
    token_s = (decode_seconds(shape, gpu, gpus, batch) + cache_s) / efficiency.memory
    token_nvlink_s = all_reduce_seconds(shape, gpu, gpus, batch)
    return (
        prompt_s + nvlink_s / efficiency.nvlink + overhead_s,
        token_s + token_nvlink_s / efficiency.nvlink + overhead_s,
    )


def fit_efficiency(
    shape: ModelShape, gpu: Gpu, gpus: int, points: list[Point], start: Efficiency = USUAL
) -> Efficiency:
    """The share of the arithmetic speed and the cost a layer that points of up to 2048 tokens show.

    The cost a layer is what decodes take beyond the roofline, the share what prompts then need;
    the other two shares stay as in ``start``.
    """
    bare = replace(start, layer_overhead_s=0.0)
    measured_prompt_s, measured_token_s = _measured(points)
    rest_s = measured_token_s - predict(shape, gpu, gpus, bare, points)[1]
    overhead_s = max(float(np.median(rest_s)) / shape.layers, 0.0)
    small = np.array([point.prompt_tokens * point.batch <= BATCH_TOKENS for point in points])

    def distance(share: float) -> float:
        tried = replace(start, compute=share, layer_overhead_s=overhead_s)
        ratio = predict(shape, gpu, gpus, tried, points)[0] / measured_prompt_s
        return float(np.abs(np.log(ratio[small])).mean())

    share = min(np.linspace(0.1, 1.0, 91).tolist(), key=distance)
    return replace(start, compute=share, layer_overhead_s=overhead_s)


def roofline_errors() -> list[RooflineError]:
    """Errors by efficiency, machine, model and kind of iteration."""
    contents = profile_contents("measured")
    errors: list[RooflineError] = []
    for model, shape in SHAPES.items():
        by_machine = {machine: points_of(contents, machine, model) for machine in MACHINES}
        fitted = fit_efficiency(shape, GPUS["a100"], 8, by_machine["dgx-a100"])
        for name, efficiency in (("assumed", USUAL), ("fitted", fitted)):
            for machine, points in by_machine.items():
                predicted = predict(shape, GPUS[MACHINES[machine]], 8, efficiency, points)
                errors += _errors(name, machine, model, points, predicted)
    return errors


def _errors(
    efficiency: str,
    machine: str,
    model: str,
    points: list[Point],
    predicted: tuple[Floats, Floats],
) -> list[RooflineError]:
    prompt_ratio, token_ratio = (
        one / other for one, other in zip(predicted, _measured(points), strict=True)
    )
    is_small = np.array([point.prompt_tokens * point.batch <= BATCH_TOKENS for point in points])
    kinds = {
        f"prompts <= {BATCH_TOKENS}": prompt_ratio[is_small],
        f"prompts > {BATCH_TOKENS}": prompt_ratio[~is_small],
        "decodes": token_ratio,
    }
    return [
        RooflineError(
            efficiency=efficiency,
            machine=machine,
            model=model,
            what=what,
            points=len(ratio),
            median_ratio=float(np.median(ratio)),
            median_error=float(np.median(np.abs(ratio - 1))),
            worst_error=float(np.abs(ratio - 1).max()),
        )
        for what, ratio in kinds.items()
    ]


def _measured(points: list[Point]) -> tuple[Floats, Floats]:
    return (
        np.array([point.prompt_ms for point in points]) / 1e3,
        np.array([point.token_ms for point in points]) / 1e3,
    )
