"""The requests of a workload: when each arrives, how long its prompt, how long its answer."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from splitwise.workload.errors import WorkloadError


@dataclass(frozen=True, eq=False)
class Requests:
    """``n`` requests in the order of their arrival.

    ``arrival_s`` float64[n], ascending, from 0 on; ``prompt_tokens`` and ``output_tokens``
    int64[n], 1 or more.

    Raises:
        WorkloadError: arrays of different lengths, or a value out of its range.
    """

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]

    def __post_init__(self) -> None:
        lengths = [len(self.arrival_s), len(self.prompt_tokens), len(self.output_tokens)]
        if len(set(lengths)) != 1:
            raise WorkloadError(
                f"arrival_s, prompt_tokens and output_tokens have {lengths} entries; "
                "give one of each for every request"
            )
        _require("arrival_s", self.arrival_s, np.isfinite(self.arrival_s), "use finite seconds")
        _require("arrival_s", self.arrival_s, self.arrival_s >= 0, "shift the times to start at 0")
        ascending = np.diff(self.arrival_s, prepend=0.0) >= 0
        _require("arrival_s", self.arrival_s, ascending, "sort the requests by arrival")
        for name in ("prompt_tokens", "output_tokens"):
            tokens = getattr(self, name)
            _require(name, tokens, tokens >= 1, "every request has at least one token of each kind")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def rate_per_s(self) -> float:
        """Mean arrivals a second between the first and the last; 0 where there are no two."""
        if len(self) < 2:
            return 0.0
        span_s = float(self.arrival_s[-1] - self.arrival_s[0])
        return (len(self) - 1) / span_s if span_s > 0 else math.inf

    def scaled(self, factor: float) -> Self:
        """The same requests at ``factor`` times the rate.

        Raises:
            WorkloadError: ``factor`` is not a positive number.
        """
        if not (factor > 0 and math.isfinite(factor)):
            raise WorkloadError(f"factor {factor}: give a positive number, such as 2 for twice")
        return type(self)(self.arrival_s / factor, self.prompt_tokens, self.output_tokens)

    def until(self, seconds: float) -> Self:
        """The requests that arrive before ``seconds``."""
        end = int(np.searchsorted(self.arrival_s, seconds, side="left"))
        return type(self)(self.arrival_s[:end], self.prompt_tokens[:end], self.output_tokens[:end])


def _require(
    name: str,
    values: NDArray[np.float64] | NDArray[np.int64],
    good: NDArray[np.bool_],
    remedy: str,
) -> None:
    if not good.all():
        first = int(np.argmin(good))
        raise WorkloadError(f"{name}[{first}] is {values[first]}: {remedy}")
