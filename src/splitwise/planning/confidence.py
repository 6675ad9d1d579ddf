"""How sure a maximum rate is: the rate with each seed, their mean, and a confidence interval."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

_T_95: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t, two-sided 95 %, of 1 to 9 degrees of freedom."""
_NORMAL_95: Final = 1.96


@dataclass(frozen=True)
class Sureness:
    """Requests a second; ``low`` and ``high`` bound the mean with 95 % confidence.

    nan with fewer than two seeds.
    """

    by_seed: tuple[float, ...]
    mean: float
    low: float
    high: float


def sureness(rates: list[float]) -> Sureness:
    """Of the highest rates with each seed, taken as independent and normal (Student's t)."""
    values = np.array(rates)
    mean = float(values.mean())
    if len(values) < 2:
        return Sureness(tuple(rates), mean, math.nan, math.nan)
    freedom = len(values) - 1
    half = t_95(freedom) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Sureness(tuple(rates), mean, mean - half, mean + half)


def t_95(freedom: int) -> float:
    """Student's t; past the table by its expansion in 1 / freedom, which is right to 0.003."""
    if freedom <= len(_T_95):
        return _T_95[freedom - 1]
    z = _NORMAL_95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2
