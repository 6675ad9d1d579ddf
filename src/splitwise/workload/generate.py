"""Make requests: sizes from one stream of random numbers, arrivals from another.

The streams are apart and drawn in order, so that request ``i`` of a seed has the same sizes at
every rate, and a longer run begins with the requests of a shorter one.
"""

import numpy as np

from splitwise.workload.arrivals import Arrivals, Poisson, Span
from splitwise.workload.errors import WorkloadError
from splitwise.workload.requests import Requests
from splitwise.workload.sizes import ResampledSizes, Sizes, built_in_sizes


def generate(
    sizes: str | Sizes | Requests,
    rate_per_s: float | None = None,
    *,
    duration_s: float | None = None,
    count: int | None = None,
    arrivals: Arrivals | None = None,
    seed: int = 0,
) -> Requests:
    """Requests of these sizes, for ``duration_s`` seconds or ``count`` of them.

    ``sizes`` is ``"conversation"``, ``"coding"``, anything with ``sample``, or recorded requests
    to draw from. They arrive as Poisson at ``rate_per_s``, or by ``arrivals``, which have a rate
    of their own. The same arguments give the same requests.

    Raises:
        WorkloadError: an argument that is missing, given twice or out of its range.
    """
    if (rate_per_s is None) == (arrivals is None):
        raise WorkloadError(
            f"rate_per_s {rate_per_s}, arrivals {arrivals}: give exactly one of them"
        )
    if seed < 0:
        raise WorkloadError(f"seed {seed}: choose 0 or more")
    process = Poisson(rate_per_s) if rate_per_s is not None else arrivals
    assert process is not None
    size_seed, arrival_seed = np.random.SeedSequence(seed).spawn(2)
    arrival_s = process.times(Span(count, duration_s), _stream(arrival_seed))
    prompt_tokens, output_tokens = _sizes(sizes).sample(len(arrival_s), _stream(size_seed))
    return Requests(arrival_s, prompt_tokens, output_tokens)


def _sizes(sizes: str | Sizes | Requests) -> Sizes:
    if isinstance(sizes, str):
        return built_in_sizes(sizes)
    if isinstance(sizes, Requests):
        return ResampledSizes(sizes.prompt_tokens, sizes.output_tokens)
    return sizes


def _stream(seed: np.random.SeedSequence) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))
