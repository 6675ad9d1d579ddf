"""What requests experienced, against themselves alone on a reference machine, and SLOs on that.

1. ``experience`` gives TTFT, TBT and end-to-end time of every request, in seconds and divided by
   what they are alone.
2. ``check_slos`` sets percentiles of these against limits; ``PAPER_SLOS`` are the paper's nine.

A request that never got what is measured (rejected, or still running at the end) counts as
infinitely slow, so that a cluster cannot meet an SLO by turning requests away.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from splitwise.simulation.result import Result

Floats = NDArray[np.float64]
Metric = Literal["ttft", "tbt", "e2e"]
Unit = Literal["x", "s"]


class SummaryError(ValueError):
    """The result cannot be summed up as asked."""


class Reference(Protocol):
    """What a request alone is measured against, such as ``hardware.IterationTimes``."""

    def prompt_time_s(self, tokens: NDArray[np.int64], /) -> Floats:
        """Seconds of iterations with that many prompt tokens, of the shape of ``tokens``."""

    def decode_time_s(self, batch: int, context_tokens: int, /) -> float:
        """Seconds of a decode iteration."""


@dataclass(frozen=True)
class Slo:
    """At most ``limit`` at this percentile of the requests.

    ``unit`` x: times of what the request takes alone; s: seconds.
    """

    metric: Metric
    percentile: int
    limit: float
    unit: Unit = "x"

    def __str__(self) -> str:
        limit = self.limit if self.unit == "x" else self.limit * 1000
        return f"{self.metric}:p{self.percentile}<={limit:g}{'x' if self.unit == 'x' else 'ms'}"


SLO_FORM: Final = "write METRIC:pNN<=LIMIT, such as ttft:p90<=3x, tbt:p99<=200ms or e2e:p50<=4s"
_SLO_PATTERN: Final = r"(ttft|tbt|e2e):?p(\d{1,2})(?:<=|<|=)([\d.]+)(x|ms|s)"

PAPER_SLOS: Final = (
    *(Slo("ttft", 50, 2.0), Slo("ttft", 90, 3.0), Slo("ttft", 99, 6.0)),
    *(Slo("tbt", 50, 1.25), Slo("tbt", 90, 1.5), Slo("tbt", 99, 5.0)),
    *(Slo("e2e", 50, 1.25), Slo("e2e", 90, 1.5), Slo("e2e", 99, 5.0)),
)
"""Splitwise (ISCA 2024), section V: all nine must hold."""


def parse_slo(text: str) -> Slo:
    """The SLO that ``ttft:p90<=3x`` or ``tbt:p99<=200ms`` means.

    Raises:
        SummaryError: another form, or a limit that is not above 0.
    """
    form = re.fullmatch(_SLO_PATTERN, text.strip().lower())
    if form is None:
        raise SummaryError(f"slo {text!r}: {SLO_FORM}")
    metric, percentile, number, unit = form.groups()
    try:
        limit = float(number) / (1000 if unit == "ms" else 1)
    except ValueError as error:
        raise SummaryError(f"slo {text!r}: {number} is no number; {SLO_FORM}") from error
    if limit <= 0 or int(percentile) == 0:
        raise SummaryError(f"slo {text!r}: give a percentile and a limit above 0")
    return Slo(cast("Metric", metric), int(percentile), limit, "x" if unit == "x" else "s")


@dataclass(frozen=True)
class SloCheck:
    """An SLO and what was reached; nan, and met, where no request is concerned."""

    metric: Metric
    percentile: int
    limit: float
    unit: Unit
    value: float
    is_met: bool

    @property
    def cells(self) -> tuple[str, str, str]:
        """Name, limit and value, for people."""
        factor, unit = (1.0, "x") if self.unit == "x" else (1000.0, " ms")
        name = f"{self.metric.upper()} P{self.percentile}"
        return name, f"{self.limit * factor:g}{unit}", f"{self.value * factor:.4g}{unit}"


@dataclass(frozen=True)
class Experience:
    """One entry a request: slowdowns, and seconds. TBT is nan for requests of one token."""

    ttft: Floats
    tbt: Floats
    e2e: Floats
    ttft_s: Floats
    tbt_s: Floats
    e2e_s: Floats

    def of(self, which: NDArray[np.bool_]) -> "Experience":
        """The same of some requests only."""
        return Experience(*(getattr(self, one.name)[which] for one in fields(self)))


def experience(result: Result, reference: Reference) -> Experience:
    """Every request in seconds and against itself alone; infinite where the answer is missing.

    Alone, the first token takes the prompt's iteration and every further one a decode iteration
    of one request whose context is the prompt.
    """
    alone_ttft_s = reference.prompt_time_s(result.prompt_tokens)
    contexts, which = np.unique(result.prompt_tokens, return_inverse=True)
    alone_tbt_s = np.array([reference.decode_time_s(1, int(one)) for one in contexts])[which]
    for name, times_s in (("prompt_time_s", alone_ttft_s), ("decode_time_s", alone_tbt_s)):
        if not (times_s > 0).all():
            raise SummaryError(
                f"reference: {name} gave {np.min(times_s)}; every time must be above 0"
            )
    alone_e2e_s = alone_ttft_s + alone_tbt_s * (result.output_tokens - 1)
    ttft_s = _missing_is_inf(result.ttft_s)
    tbt_s = np.where(result.output_tokens > 1, _missing_is_inf(result.tbt_s), np.nan)
    e2e_s = _missing_is_inf(result.e2e_s)
    return Experience(
        *(ttft_s / alone_ttft_s, tbt_s / alone_tbt_s, e2e_s / alone_e2e_s),
        *(ttft_s, tbt_s, e2e_s),
    )


def _missing_is_inf(values: Floats) -> Floats:
    return np.where(np.isnan(values), np.inf, values)


def check_slos(seen: Experience, slos: Sequence[Slo]) -> tuple[SloCheck, ...]:
    """Every SLO with what was reached at its percentile."""

    def check(slo: Slo) -> SloCheck:
        values = present(getattr(seen, slo.metric if slo.unit == "x" else f"{slo.metric}_s"))
        value = percentile(values, slo.percentile)
        is_met = len(values) == 0 or value <= slo.limit
        return SloCheck(slo.metric, slo.percentile, slo.limit, slo.unit, value, is_met)

    return tuple(check(slo) for slo in slos)


def percentile(values: Floats, percent: float) -> float:
    """A percentile, linear between values, of values that may be infinite; nan of none.

    numpy's own is nan next to an infinite value.
    """
    if len(values) == 0:
        return float("nan")
    position = (len(values) - 1) * percent / 100
    low, high = math.floor(position), math.ceil(position)
    ordered = np.partition(values, (low, high))
    below, above = float(ordered[low]), float(ordered[high])
    if below == above or low == high:
        return below
    return below + (above - below) * (position - low)


def present(values: Floats) -> Floats:
    """The values that are not nan."""
    return values[~np.isnan(values)]
