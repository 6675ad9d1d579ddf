"""The load that is planned for, at any rate and with any seed.

The same seed gives the same requests in the same order at every rate (common random numbers), so
that two clusters, or two rates, are compared on the same luck.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from splitwise.workload import BUILT_IN, Requests, open_source, read_requests

MIN_DURATION_S: Final = 120.0
MIN_REQUESTS: Final = 3000
"""With fewer, a 99th percentile is the word of a handful of requests."""
WARM_UP_SHARE: Final = 0.25
CACHED_LOADS: Final = 32


@dataclass(frozen=True)
class Demand:
    """``source`` and ``arrivals`` as ``workload.open_source`` takes them.

    ``duration_s`` None: as long as 3,000 requests take, at least 120 s. Requests that arrive in the
    first ``warm_up_share`` of the time are simulated but not counted.
    """

    source: str
    arrivals: str | None = None
    duration_s: float | None = None
    warm_up_share: float = WARM_UP_SHARE

    def duration_at(self, rate_per_s: float) -> float:
        """Seconds of arrivals."""
        return self.duration_s or max(MIN_DURATION_S, MIN_REQUESTS / rate_per_s)

    def warm_up_at(self, rate_per_s: float) -> float:
        """Seconds that are left out."""
        return self.warm_up_share * self.duration_at(rate_per_s)

    def requests(self, rate_per_s: float, seed: int) -> Requests:
        """The load at that rate; raises WorkloadError if there is no such workload."""
        duration_s = self.duration_at(rate_per_s)
        return _load(self.source, self._modified_s(), rate_per_s, duration_s, seed, self.arrivals)

    def content_digest(self) -> bytes:
        """Of the recording's bytes; empty for a built-in workload."""
        if self.source in BUILT_IN or not Path(self.source).is_file():
            return b""
        return hashlib.blake2b(Path(self.source).read_bytes(), digest_size=16).digest()

    def mean_prompt_tokens(self) -> float:
        """Of a large sample."""
        if self.source in BUILT_IN:
            return float(self.requests(100.0, 0).prompt_tokens.mean())
        return float(read_requests(self.source).prompt_tokens.mean())

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
