"""A histogram of how long something took, with a single series.

The library's own takes two locks an observation, looks for the bucket from the first one on and
checks each time whether it has labels, which for every token of every stream is a good part of what
a token costs.
"""

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Durations(Collector):
    """Observed on one thread; may be collected on any."""

    def __init__(
        self,
        name: str,
        text: str,
        bounds_s: Sequence[float],
        model_name: str,
        registry: CollectorRegistry,
    ) -> None:
        """``bounds_s``: the most that each bucket takes, ascending."""
        self._name = name
        self._text = text
        self._bounds_s = tuple(bounds_s)
        self._labels = {"model_name": model_name}
        self._counts = [0] * (len(self._bounds_s) + 1)
        """By bucket, those beyond the last bound in the end."""
        self._sum_s = 0.0
        self._created_s = time.time()
        registry.register(self)

    def observe(self, seconds: float, times: int = 1) -> None:
        """Something took so long, so many times."""
        self._counts[bisect_left(self._bounds_s, seconds)] += times
        self._sum_s += seconds * times

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=list(self._labels))
        bounds = [*map(floatToGoString, self._bounds_s), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        family.add_metric(list(self._labels.values()), buckets, self._sum_s)
        family.add_sample(f"{self._name}_created", self._labels, self._created_s)
        yield family
