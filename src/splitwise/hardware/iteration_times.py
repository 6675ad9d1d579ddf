"""``IterationTimes``: all the simulator needs to know of one machine kind with one model.

Three kinds of iteration, seconds each:

1. prompts only: by the number of prompt tokens, straight lines through knots;
2. decodes only: by the number of requests, plus a little for each token of context they hold;
3. both: the prompts and one token a decode, a little dearer than prompts alone.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitwise.hardware.errors import HardwareError

MAX_DECODES: Final = 512
MIXED_FACTOR: Final = 1.1
"""Of a mixed iteration, against one of prompts alone: the public simulator's figure."""
TINY_S: Final = 1e-6
"""No iteration is shorter, however far below the first knot it is extrapolated."""

Floats = NDArray[np.float64]


def straight_lines(knots: ArrayLike, values: ArrayLike, at: ArrayLike) -> Floats:
    """Linear between knots; beyond them, the line through the two nearest.

    ``knots`` and ``values`` have shape [k], k >= 2 and knots ascend; the answer has ``at``'s shape.
    """
    x = np.asarray(knots, dtype=np.float64)
    y = np.asarray(values, dtype=np.float64)
    wanted = np.asarray(at, dtype=np.float64)
    right = np.clip(np.searchsorted(x, wanted), 1, len(x) - 1)
    slope = (y[right] - y[right - 1]) / (x[right] - x[right - 1])
    return np.asarray(y[right - 1] + slope * (wanted - x[right - 1]), dtype=np.float64)


@dataclass(frozen=True)
class IterationTimes:
    """Times, memory, power and price of a machine kind with a model.

    Attributes:
        prompt_tokens: [k] ascending knots, k >= 2.
        prompt_s: [k] seconds of an iteration of so many prompt tokens.
        decode_s: [513] seconds of an iteration of b decodes with no context; index 0 is 0.
        decode_s_per_context_token: [513] seconds added by a token of context in the batch.
        mixed_factor: How much dearer prompts are when decodes ride along.
        kv_capacity_tokens: Tokens whose cache fits beside the weights.
        kv_bytes_per_token: Cache of one token, all layers.
        layers: Layers of the model; a transfer can follow the prompt layer by layer.
        power_tokens: [p] ascending knots of ``prompt_watts``, p >= 1.
        prompt_watts: [p] drawn by the machine's GPUs during so many prompt tokens.
        decode_watts: Drawn during decodes; flat in the batch size.
        idle_watts: Drawn while nothing runs.
        provisioned_watts: Power that is set aside for the machine, whatever it draws.
        dollars_per_hour: Of the whole machine.
        gpus: GPUs of the machine.
        link_bytes_per_s: From or to the machine, all its GPUs together.
        link_latency_s: From the first byte put to its arrival.
    """

    prompt_tokens: Floats
    prompt_s: Floats
    decode_s: Floats
    decode_s_per_context_token: Floats
    mixed_factor: float
    kv_capacity_tokens: int
    kv_bytes_per_token: float
    layers: int
    power_tokens: Floats
    prompt_watts: Floats
    decode_watts: float
    idle_watts: float
    provisioned_watts: float
    dollars_per_hour: float
    gpus: int
    link_bytes_per_s: float
    link_latency_s: float

    def __post_init__(self) -> None:
        knots = len(self.prompt_tokens)
        if knots < 2 or np.any(np.diff(self.prompt_tokens) <= 0):
            raise HardwareError(
                f"prompt_tokens has {knots} knots; it needs two or more, in ascending order"
            )
        if len(self.prompt_s) != knots or len(self.prompt_watts) != len(self.power_tokens):
            raise HardwareError("prompt_s or prompt_watts: one value a knot is needed")
        for name in ("decode_s", "decode_s_per_context_token"):
            if getattr(self, name).shape != (MAX_DECODES + 1,):
                raise HardwareError(f"{name} has shape {getattr(self, name).shape}; needs (513,)")
        if self.kv_capacity_tokens < 1:
            raise HardwareError(
                f"kv_capacity_tokens is {self.kv_capacity_tokens}: the weights leave no memory "
                "for the cache; use more GPUs or smaller weights"
            )

    def prompt_time_s(self, tokens: ArrayLike) -> Floats:
        """Seconds of iterations of so many prompt tokens; same shape as ``tokens``."""
        return np.maximum(straight_lines(self.prompt_tokens, self.prompt_s, tokens), TINY_S)

    def decode_time_s(self, batch: int, context_tokens: int) -> float:
        """Seconds of an iteration of ``batch`` decodes (0 to 512) of that context in all."""
        slope = self.decode_s_per_context_token[batch]
        return float(self.decode_s[batch] + slope * context_tokens)

    def mixed_time_s(self, prompt_tokens: int, decodes: int, context_tokens: int) -> float:
        """Seconds of an iteration of prompts and decodes together."""
        work_s = self.mixed_factor * float(self.prompt_time_s(prompt_tokens + decodes))
        return work_s + float(self.decode_s_per_context_token[decodes]) * context_tokens

    def prompt_watts_at(self, tokens: ArrayLike) -> Floats:
        """Watts during iterations of so many prompt tokens; flat beyond the first and last knot."""
        at = np.asarray(tokens, dtype=np.float64)
        return np.asarray(np.interp(at, self.power_tokens, self.prompt_watts))
