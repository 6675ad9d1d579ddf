"""A workload as a user names it: ``conversation``, ``coding``, or the path of a recording."""

import math
from pathlib import Path
from typing import Final

from splitwise.workload.errors import WorkloadError
from splitwise.workload.generate import generate
from splitwise.workload.reading import read_requests
from splitwise.workload.requests import Requests
from splitwise.workload.sizes import BUILT_IN

DEFAULT_RATE_PER_S: Final = 10.0
DEFAULT_DURATION_S: Final = 600.0


def open_source(
    source: str,
    rate_per_s: float | None = None,
    duration_s: float | None = None,
    seed: int = 0,
) -> Requests:
    """The requests of ``source``.

    A built-in workload is drawn, Poisson at ``rate_per_s`` (10) for ``duration_s`` (600). A
    recording is sped up or slowed down to ``rate_per_s`` and cut at ``duration_s`` where given;
    it is never drawn, so ``seed`` means nothing to it.

    Raises:
        WorkloadError: no such workload or file, or a value out of its range.
    """
    for name, value in (("rate_per_s", rate_per_s), ("duration_s", duration_s)):
        if value is not None and not value > 0:
            raise WorkloadError(f"{name} {value}: give a positive number")
    if source in BUILT_IN:
        return generate(
            source,
            rate_per_s if rate_per_s is not None else DEFAULT_RATE_PER_S,
            duration_s=duration_s if duration_s is not None else DEFAULT_DURATION_S,
            seed=seed,
        )
    if not Path(source).exists():
        raise WorkloadError(f"{source!r}: no such file, nor one of {', '.join(BUILT_IN)}")
    requests = read_requests(source)
    if rate_per_s is not None:
        if not 0 < requests.rate_per_s < math.inf:
            raise WorkloadError(
                f"rate_per_s {rate_per_s}: the {len(requests)} requests of {source} span no time "
                "and have no rate to scale; leave rate_per_s out"
            )
        requests = requests.scaled(rate_per_s / requests.rate_per_s)
    return requests if duration_s is None else requests.until(duration_s)
