"""How long prompts and answers are.

    two correlated normals -> their probabilities -> the quantile table -> tokens

The built-in workloads keep the quantiles of a trace and the rank correlation of its prompts and
outputs (a Gaussian copula), so they need no file. Whoever has a trace draws whole requests from it
instead (``ResampledSizes``), which keeps everything about the pairs.
"""

import csv
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from splitwise.workload.errors import WorkloadError

Tokens = NDArray[np.int64]

RANK_CORRELATION: Final = {"conversation": 0.0728, "coding": -0.0215}
"""Spearman's, of prompt and output tokens in the traces that ``azure_llm_2023.csv`` names."""

BUILT_IN: Final = tuple(RANK_CORRELATION)


class Sizes(Protocol):
    """A way to choose the sizes of requests."""

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Prompt tokens and output tokens, int64[count] each, 1 or more."""
        ...


@dataclass(frozen=True, eq=False)
class QuantileSizes:
    """Sizes with these quantiles and this rank correlation.

    ``probability`` float64[k] ascends from 0 to 1; ``prompt_tokens`` and ``output_tokens``
    float64[k] are the quantiles there, joined by straight lines.

    Raises:
        WorkloadError: a table of another form.
    """

    probability: NDArray[np.float64]
    prompt_tokens: NDArray[np.float64]
    output_tokens: NDArray[np.float64]
    rank_correlation: float

    def __post_init__(self) -> None:
        known = self.probability
        if len(known) < 2 or known[0] != 0 or known[-1] != 1 or (np.diff(known) <= 0).any():
            raise WorkloadError(f"probability {known}: let it ascend from 0 to 1")
        for name in ("prompt_tokens", "output_tokens"):
            tokens = getattr(self, name)
            if len(tokens) != len(known) or tokens[0] < 1 or (np.diff(tokens) < 0).any():
                raise WorkloadError(
                    f"{name} {tokens}: give {len(known)} ascending quantiles of 1 or more"
                )
        if not -1 <= self.rank_correlation <= 1:
            raise WorkloadError(f"rank_correlation {self.rank_correlation}: use -1 to 1")

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """See ``Sizes.sample``."""
        # The normals' own correlation that gives this rank correlation (Pearson 1907).
        correlation = 2 * math.sin(math.pi / 6 * self.rank_correlation)
        normal = rng.standard_normal((count, 2))
        prompt = normal[:, 0]
        output = correlation * prompt + math.sqrt(1 - correlation**2) * normal[:, 1]
        return self._tokens(prompt, self.prompt_tokens), self._tokens(output, self.output_tokens)

    def _tokens(self, normal: NDArray[np.float64], quantiles: NDArray[np.float64]) -> Tokens:
        tokens = np.interp(_probability_below(normal), self.probability, quantiles)
        return np.rint(tokens).astype(np.int64)


@dataclass(frozen=True)
class ConstantSizes:
    """Every request alike."""

    prompt_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise WorkloadError(
                f"prompt_tokens {self.prompt_tokens}, output_tokens {self.output_tokens}: "
                "give at least one token each"
            )

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """See ``Sizes.sample``; nothing is drawn."""
        del rng
        return (
            np.full(count, self.prompt_tokens, np.int64),
            np.full(count, self.output_tokens, np.int64),
        )


@dataclass(frozen=True, eq=False)
class ResampledSizes:
    """Sizes of recorded requests, int64[n] each, drawn in pairs with replacement."""

    prompt_tokens: Tokens
    output_tokens: Tokens

    def __post_init__(self) -> None:
        if len(self.prompt_tokens) == 0 or len(self.prompt_tokens) != len(self.output_tokens):
            raise WorkloadError(
                f"{len(self.prompt_tokens)} prompt_tokens, {len(self.output_tokens)} "
                "output_tokens: give one of each for at least one request"
            )

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """See ``Sizes.sample``."""
        chosen = rng.integers(len(self.prompt_tokens), size=count)
        return self.prompt_tokens[chosen], self.output_tokens[chosen]


@cache
def built_in_sizes(name: str) -> QuantileSizes:
    """The sizes of ``conversation`` or ``coding``.

    Raises:
        WorkloadError: no such workload.
    """
    if name not in RANK_CORRELATION:
        raise WorkloadError(f"workload {name!r}: choose from {', '.join(BUILT_IN)}")
    table = files("splitwise.workload").joinpath("azure_llm_2023.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in table.splitlines() if not line.startswith("#"))
    wanted = ("probability", f"{name}_prompt", f"{name}_output")
    columns = np.array([[float(row[column]) for column in wanted] for row in rows]).T
    return QuantileSizes(columns[0], columns[1], columns[2], RANK_CORRELATION[name])


def _probability_below(normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """The standard normal distribution function."""
    scaled = (normal / math.sqrt(2)).tolist()
    return 0.5 + 0.5 * np.fromiter(map(math.erf, scaled), np.float64, len(scaled))
