"""When requests arrive.

    unit gaps (mean 1) -> their running sum, "operational time" -> seconds

A process with a changing rate is one with rate 1 whose clock runs faster and slower: its arrivals
are the inverse of the cumulative rate at the running sums (Cinlar 1975, time rescaling). Every
process draws its gaps in order, so that a longer run begins with the same arrivals as a shorter.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from splitwise.workload.errors import WorkloadError

Seconds = NDArray[np.float64]

_CHUNK: Final = 4096
_BISECTIONS: Final = 60  # Halves any bracket below a float's resolution.


@dataclass(frozen=True)
class Span:
    """How many arrivals are wanted: the first ``count``, or all before ``duration_s``.

    Raises:
        WorkloadError: neither or both are given, or one is not positive.
    """

    count: int | None = None
    duration_s: float | None = None

    def __post_init__(self) -> None:
        if (self.count is None) == (self.duration_s is None):
            raise WorkloadError(
                f"count {self.count}, duration_s {self.duration_s}: give exactly one of them"
            )
        if self.count is not None and self.count < 1:
            raise WorkloadError(f"count {self.count}: ask for at least one request")
        if self.duration_s is not None:
            _require_positive("duration_s", self.duration_s)

    def reached_by(self, times: Seconds) -> bool:
        """Whether ascending ``times`` hold everything that is wanted."""
        if self.count is not None:
            return len(times) >= self.count
        return len(times) > 0 and bool(times[-1] >= (self.duration_s or 0.0))

    def cut(self, times: Seconds) -> Seconds:
        """The wanted part of ascending ``times``."""
        if self.count is not None:
            return times[: self.count]
        return times[times < (self.duration_s or 0.0)]


class Arrivals(Protocol):
    """A way for requests to arrive."""

    def times(self, span: Span, rng: np.random.Generator) -> Seconds:
        """Ascending arrival times in seconds from 0 on."""
        ...


@dataclass(frozen=True)
class Poisson:
    """Independent arrivals at a constant rate."""

    rate_per_s: float

    def __post_init__(self) -> None:
        _require_positive("rate_per_s", self.rate_per_s)

    def times(self, span: Span, rng: np.random.Generator) -> Seconds:
        """See ``Arrivals.times``."""
        return _draw(span, rng.standard_exponential, lambda unit: unit / self.rate_per_s)


@dataclass(frozen=True)
class Gamma:
    """Gamma-distributed gaps: ``cv`` (deviation / mean) 1 is Poisson, more is burstier.

    Gaps begin at an arrival, so a short window of a very bursty process sees more than the rate:
    about (cv^2 - 1) / 2 requests more.
    """

    rate_per_s: float
    cv: float

    def __post_init__(self) -> None:
        _require_positive("rate_per_s", self.rate_per_s)
        _require_positive("cv", self.cv)

    def times(self, span: Span, rng: np.random.Generator) -> Seconds:
        """See ``Arrivals.times``."""
        shape = self.cv**-2
        return _draw(
            span,
            lambda count: rng.standard_gamma(shape, count) / shape,
            lambda unit: unit / self.rate_per_s,
        )


@dataclass(frozen=True, eq=False)
class Replay:
    """Recorded arrivals, sped up or slowed down to ``rate_per_s`` (None: as recorded).

    ``recorded_s`` float64[n] ascending. Asking for more than was recorded is an error: what
    comes after the end of a recording is not known.
    """

    recorded_s: Seconds
    rate_per_s: float | None = None

    def __post_init__(self) -> None:
        if len(self.recorded_s) < 2 or not self.recorded_s[-1] > self.recorded_s[0]:
            raise WorkloadError(
                f"recorded_s has {len(self.recorded_s)} times that span no time; "
                "replay a recording of at least two arrivals"
            )
        if self.rate_per_s is not None:
            _require_positive("rate_per_s", self.rate_per_s)

    def times(self, span: Span, rng: np.random.Generator) -> Seconds:
        """See ``Arrivals.times``; the first is at 0. Nothing is drawn."""
        del rng
        times = self.recorded_s - self.recorded_s[0]
        if self.rate_per_s is not None:
            times = times * ((len(times) - 1) / (self.rate_per_s * times[-1]))
        if not span.reached_by(times):
            raise WorkloadError(
                f"count {span.count}, duration_s {span.duration_s}: the recording has "
                f"{len(times)} requests in {times[-1]:.6g} s at this rate; ask for less"
            )
        return span.cut(times)


@dataclass(frozen=True)
class Piecewise:
    """Poisson arrivals whose rate changes at set times.

    ``steps`` are (start_s, rate_per_s), the first at 0, ascending; the last holds for ever.
    """

    steps: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not self.steps or self.steps[0][0] != 0:
            raise WorkloadError(f"steps {self.steps}: give (start_s, rate_per_s), the first at 0")
        if any(later[0] <= earlier[0] for earlier, later in pairwise(self.steps)):
            raise WorkloadError(f"steps {self.steps}: put them in ascending order of start_s")
        if any(not (rate >= 0 and math.isfinite(rate)) for _, rate in self.steps):
            raise WorkloadError(f"steps {self.steps}: give rates of 0 or more")

    def times(self, span: Span, rng: np.random.Generator) -> Seconds:
        """See ``Arrivals.times``."""
        return _draw(span, rng.standard_exponential, self._seconds)

    def _seconds(self, unit: Seconds) -> Seconds:
        start_s, rate = np.array(self.steps, dtype=np.float64).T
        begun = np.concatenate([[0.0], np.cumsum(np.diff(start_s) * rate[:-1])])
        # Of steps that begin equal, those before the last have rate 0 and see no arrival.
        step = np.searchsorted(begun, unit, side="right") - 1
        with np.errstate(divide="ignore"):  # A last rate of 0: no arrival any more, at infinity.
            return np.asarray(start_s[step] + (unit - begun[step]) / rate[step])


@dataclass(frozen=True)
class Diurnal:
    """Poisson arrivals at ``mean * (1 + amplitude * sin(2 pi t / period))``.

    ``amplitude`` lies between 0 and 1; the peak comes after a quarter of the period.
    """

    mean_rate_per_s: float
    amplitude: float
    period_s: float = 86_400.0

    def __post_init__(self) -> None:
        _require_positive("mean_rate_per_s", self.mean_rate_per_s)
        _require_positive("period_s", self.period_s)
        if not 0 <= self.amplitude <= 1:
            raise WorkloadError(f"amplitude {self.amplitude}: choose a number from 0 to 1")

    def times(self, span: Span, rng: np.random.Generator) -> Seconds:
        """See ``Arrivals.times``."""
        return _draw(span, rng.standard_exponential, self._seconds)

    def _seconds(self, unit: Seconds) -> Seconds:
        # t + swing (1 - cos) = unit / mean, where the second term lies in [0, 2 swing].
        target = unit / self.mean_rate_per_s
        swing = self.amplitude * self.period_s / math.tau
        high = target
        low = np.maximum(target - 2 * swing, 0.0)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            early = middle + swing * (1 - np.cos(math.tau / self.period_s * middle)) < target
            low, high = np.where(early, middle, low), np.where(early, high, middle)
        return high


def _draw(
    span: Span, gaps: Callable[[int], Seconds], seconds: Callable[[Seconds], Seconds]
) -> Seconds:
    """Draw ``gaps`` of mean 1 in chunks, turn their sums to ``seconds``, until ``span`` is full."""
    chunks: list[Seconds] = []
    drawn, unit = 0, 0.0
    while True:
        sums = unit + np.cumsum(gaps(_CHUNK))
        times, unit, drawn = seconds(sums), float(sums[-1]), drawn + _CHUNK
        chunks.append(times)
        if np.isinf(times[-1]) or span.reached_by(times) or drawn >= (span.count or math.inf):
            break
    found = span.cut(np.concatenate(chunks))
    if span.count is not None and np.isinf(found[-1]):
        raise WorkloadError(
            f"count {span.count}: the last rate is 0, so only {int(np.isfinite(found).sum())} "
            "arrive; ask for fewer, or end with a positive rate"
        )
    return found


def _require_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise WorkloadError(f"{name} {value}: give a positive number")
