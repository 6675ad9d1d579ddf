"""Requests of the sizes of the public traces, scaled down to the machine at hand.

Lognormal sizes with the medians and 90th percentiles of the Azure 2023 traces (Splitwise, ISCA
2024, section III; the traces are CC-BY 4.0): coding 1500 / 5194 prompt and 13 / 55 output tokens,
conversation 1020 / 2735 and 129 / 424.
"""

import math
from dataclasses import dataclass

import numpy as np

_Z90 = 1.2816
QUANTILES = {
    "coding": ((1500, 5194), (13, 55)),
    "conversation": ((1020, 2735), (129, 424)),
}


@dataclass(frozen=True)
class Sized:
    """One request: a prompt of random tokens, and how many tokens to ask for."""

    prompt: list[int]
    output_tokens: int


def draw(
    name: str,
    count: int,
    scale: float,
    seed: int,
    max_prompt_tokens: int = 1500,
    max_output_tokens: int = 400,
    vocab_size: int = 49152,
) -> list[Sized]:
    """``count`` requests of workload ``name``, both sizes multiplied by ``scale``."""
    rng = np.random.default_rng(seed)
    (prompt_median, prompt_p90), (output_median, output_p90) = QUANTILES[name]
    prompts = _lognormal(rng, count, prompt_median, prompt_p90, scale)
    outputs = _lognormal(rng, count, output_median, output_p90, scale)
    return [
        Sized(
            rng.integers(100, vocab_size, min(max(4, int(p)), max_prompt_tokens)).tolist(),
            min(max(2, int(o)), max_output_tokens),
        )
        for p, o in zip(prompts, outputs, strict=True)
    ]


def _lognormal(
    rng: np.random.Generator, count: int, median: float, p90: float, scale: float
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    sigma = math.log(p90 / median) / _Z90
    return rng.lognormal(math.log(median * scale), sigma, count)
