"""The load that is planned for, at any rate and with any seed.

The same seed gives the same requests in the same order at every rate (common random numbers), so
that two clusters, or two rates, are compared on the same luck.
"""

import hashlib
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitwise.planning.errors import PlanningError
from splitwise.workload import BUILT_IN, Requests, open_source
from splitwise.workload.source import REPLAY, recording

MIN_DURATION_S: Final = 240.0
"""Long answers take over a minute; less would not see the cluster settle."""
SHORT_S: Final = 120.0
MAX_REQUESTS: Final = 200_000
"""A large cluster needs no longer than it takes to see so many, but never less than 120 s."""
MIN_REQUESTS: Final = 3000
"""With fewer, a 99th percentile is the word of a handful of requests."""
WARM_UP_SHARE: Final = 0.25
CACHED_LOADS: Final = 32


@dataclass(frozen=True)
class Demand:
    """``source`` and ``arrivals`` as ``workload.open_source`` takes them.

    ``duration_s`` None: as long as 3,000 requests take, at least 240 s, or 120 s at large rates.
    Requests that arrive in the first ``warm_up_share`` of it are simulated but not counted.
    """

    source: str
    arrivals: str | None = None
    duration_s: float | None = None
    warm_up_share: float = WARM_UP_SHARE

    def __post_init__(self) -> None:
        if self.source not in BUILT_IN and not Path(self.source).exists():
            raise PlanningError(
                f"source is {self.source!r}: no such file, nor one of {', '.join(BUILT_IN)}"
            )
        if self.duration_s is not None and not 0 < self.duration_s < math.inf:
            raise PlanningError(f"duration_s is {self.duration_s:g}; give seconds above 0")
        if not 0 <= self.warm_up_share < 1:
            raise PlanningError(
                f"warm_up_share is {self.warm_up_share:g}; leave out 0 or more, but less than 1"
            )
        if self.arrivals is not None and self.arrivals.startswith("steps"):
            raise PlanningError(
                f"arrivals is {self.arrivals!r}; steps have rates of their own, but planning sets "
                "the rate: use poisson, gamma or diurnal"
            )

    def duration_at(self, rate_per_s: float) -> float:
        """Seconds of arrivals."""
        enough_s = max(SHORT_S, min(MIN_DURATION_S, MAX_REQUESTS / rate_per_s))
        return self.duration_s or max(enough_s, MIN_REQUESTS / rate_per_s)

    def warm_up_at(self, rate_per_s: float) -> float:
        """Seconds that are left out: a share of the time, or of a recording that ends before."""
        end_s = self.duration_at(rate_per_s)
        if self._is_replayed():
            recorded = recording(self.source)
            last_s = float(recorded.arrival_s[-1]) * recorded.rate_per_s / rate_per_s
            end_s = min(end_s, last_s)
        return self.warm_up_share * end_s

    def requests(self, rate_per_s: float, seed: int) -> Requests:
        """The load at that rate; raises WorkloadError if there is no such workload."""
        duration_s = self.duration_at(rate_per_s)
        return _load(self.source, self._modified_s(), rate_per_s, duration_s, seed, self.arrivals)

    def content_digest(self) -> bytes:
        """Of the recording's bytes; empty for a built-in workload."""
        if self.source in BUILT_IN or not Path(self.source).is_file():
            return b""
        return hashlib.blake2b(Path(self.source).read_bytes(), digest_size=16).digest()

    def usual_prompt_tokens(self) -> NDArray[np.int64]:
        """Of all recorded requests, or of a large sample."""
        if self.source in BUILT_IN:
            return replace(self, duration_s=None).requests(100.0, 0).prompt_tokens
        return recording(self.source).prompt_tokens

    def _is_replayed(self) -> bool:
        return self.source not in BUILT_IN and self.arrivals in (None, REPLAY)

    def _modified_s(self) -> float:
        path = Path(self.source)
        return path.stat().st_mtime if path.exists() else 0.0


@lru_cache(CACHED_LOADS)
def _load(
    source: str,
    modified_s: float,
    rate_per_s: float,
    duration_s: float,
    seed: int,
    arrivals: str | None,
) -> Requests:
    """``modified_s`` makes a file that was written anew another load."""
    del modified_s
    return open_source(source, rate_per_s, duration_s, seed, arrivals)
