"""A workload as a user names it: sizes, and how they arrive.

Sizes: ``conversation``, ``coding``, or the path of a recording. Arrivals: ``poisson``,
``gamma:CV``, ``diurnal:AMPLITUDE[:PERIOD_S]``, ``steps:0=RATE,START_S=RATE,...`` or, of a
recording, ``replay``.
"""

import math
from functools import lru_cache
from pathlib import Path
from typing import Final

from splitwise.workload.arrivals import Arrivals, Diurnal, Gamma, Piecewise, Poisson
from splitwise.workload.errors import WorkloadError
from splitwise.workload.generate import generate
from splitwise.workload.reading import read_requests
from splitwise.workload.requests import Requests
from splitwise.workload.sizes import BUILT_IN

DEFAULT_RATE_PER_S: Final = 10.0
DEFAULT_DURATION_S: Final = 600.0
REPLAY: Final = "replay"
ARRIVAL_FORMS: Final = (
    "write poisson, gamma:CV, diurnal:AMPLITUDE[:PERIOD_S] or steps:0=RATE,START_S=RATE,... "
    "(a recording can also be replayed: replay)"
)


def open_source(
    source: str,
    rate_per_s: float | None = None,
    duration_s: float | None = None,
    seed: int = 0,
    arrivals: str | None = None,
) -> Requests:
    """The requests of ``source``.

    A built-in workload is drawn, by default Poisson at ``rate_per_s`` (10) for ``duration_s``
    (600). A recording is replayed, sped up or slowed down to ``rate_per_s`` and cut at
    ``duration_s`` where given, and ``seed`` means nothing to it; with other ``arrivals`` it is
    where sizes are drawn from.

    Raises:
        WorkloadError: no such workload or file, or a value out of its range.
    """
    for name, value in (("rate_per_s", rate_per_s), ("duration_s", duration_s)):
        if value is not None and not value > 0:
            raise WorkloadError(f"{name} {value}: give a positive number")
    is_built_in = source in BUILT_IN
    if not is_built_in and not Path(source).exists():
        raise WorkloadError(f"{source!r}: no such file, nor one of {', '.join(BUILT_IN)}")
    if is_built_in or arrivals not in (None, REPLAY):
        rate = rate_per_s if rate_per_s is not None else DEFAULT_RATE_PER_S
        return generate(
            source if is_built_in else recording(source),
            duration_s=duration_s if duration_s is not None else DEFAULT_DURATION_S,
            arrivals=parse_arrivals(arrivals or "poisson", rate),
            seed=seed,
        )
    requests = recording(source)
    if rate_per_s is not None:
        if not 0 < requests.rate_per_s < math.inf:
            raise WorkloadError(
                f"rate_per_s {rate_per_s}: the {len(requests)} requests of {source} span no time "
                "and have no rate to scale; leave rate_per_s out"
            )
        requests = requests.scaled(rate_per_s / requests.rate_per_s)
    return requests if duration_s is None else requests.until(duration_s)


def recording(source: str) -> Requests:
    """The requests of a file as they were recorded; read once for as long as it is not changed."""
    return _recording(source, Path(source).stat().st_mtime_ns)


@lru_cache(4)
def _recording(source: str, modified_ns: int) -> Requests:
    del modified_ns
    return read_requests(source)


def parse_arrivals(text: str, rate_per_s: float) -> Arrivals:
    """The arrival process that ``text`` names, at ``rate_per_s`` on average.

    ``steps`` have rates of their own.

    Raises:
        WorkloadError: another form, or a value out of its range.
    """
    name, _, rest = text.partition(":")
    try:
        if name == "poisson" and not rest:
            return Poisson(rate_per_s)
        if name == "gamma":
            return Gamma(rate_per_s, float(rest))
        if name == "diurnal":
            return Diurnal(rate_per_s, *(float(part) for part in rest.split(":")))
        if name == "steps":
            pairs = [part.split("=") for part in rest.split(",")]
            return Piecewise(tuple((float(start), float(rate)) for start, rate in pairs))
    except WorkloadError:
        raise
    except (TypeError, ValueError) as error:
        raise WorkloadError(f"arrivals {text!r}: {error}; {ARRIVAL_FORMS}") from error
    raise WorkloadError(f"arrivals {text!r}: {ARRIVAL_FORMS}")
