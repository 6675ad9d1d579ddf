"""What a workload looks like: sizes, rate, burstiness, and whether sizes go together."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitwise.workload.errors import WorkloadError
from splitwise.workload.requests import Requests


@dataclass(frozen=True)
class TokenSummary:
    """Mean, quantiles and ends of one kind of token count."""

    mean: float
    minimum: int
    p50: float
    p90: float
    p99: float
    maximum: int


@dataclass(frozen=True)
class WorkloadSummary:
    """``duration_s`` lies between the first and the last arrival.

    ``interarrival_cv`` is the gaps' deviation over their mean, 1 for Poisson; ``rank_correlation``
    is Spearman's, of prompt and output tokens. None: not defined for so few or such requests.
    """

    requests: int
    duration_s: float
    rate_per_s: float | None
    interarrival_cv: float | None
    prompt_tokens: TokenSummary
    output_tokens: TokenSummary
    rank_correlation: float | None


def summarise(requests: Requests) -> WorkloadSummary:
    """Summarise at least one request.

    Raises:
        WorkloadError: there is none.
    """
    if len(requests) == 0:
        raise WorkloadError("0 requests: nothing to summarise; choose a longer duration")
    gaps_s = np.diff(requests.arrival_s)
    rate_per_s = requests.rate_per_s
    return WorkloadSummary(
        requests=len(requests),
        duration_s=float(requests.arrival_s[-1] - requests.arrival_s[0]),
        rate_per_s=rate_per_s if 0 < rate_per_s < math.inf else None,
        interarrival_cv=float(gaps_s.std() / gaps_s.mean()) if gaps_s.any() else None,
        prompt_tokens=_summary(requests.prompt_tokens),
        output_tokens=_summary(requests.output_tokens),
        rank_correlation=rank_correlation(requests.prompt_tokens, requests.output_tokens),
    )


def rank_correlation(first: NDArray[np.int64], second: NDArray[np.int64]) -> float | None:
    """Spearman's rank correlation of int64[n] and int64[n]; None where either never changes."""
    ranks = _ranks(first), _ranks(second)
    if any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: NDArray[np.int64]) -> NDArray[np.float64]:
    """Ranks from 1 on; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    shared = np.cumsum(count) - (count - 1) / 2
    return np.asarray(shared[place], dtype=np.float64)


def _summary(tokens: NDArray[np.int64]) -> TokenSummary:
    p50, p90, p99 = np.quantile(tokens, [0.5, 0.9, 0.99]).tolist()
    return TokenSummary(
        mean=float(tokens.mean()),
        minimum=int(tokens.min()),
        p50=p50,
        p90=p90,
        p99=p99,
        maximum=int(tokens.max()),
    )
