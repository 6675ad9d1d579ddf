"""What arrives at a cluster: requests read from a recording, or drawn.

    source ─┬─ a path ── reading ─────────────────┐
            └─ a name ── sizes + arrivals ── generate ──> Requests ──> summary, writing

- ``requests``: the arrays everything else takes
- ``reading``, ``writing``: files of recorded requests, in five formats
- ``sizes``: ``conversation`` and ``coding`` built in, constant sizes, sizes drawn from a recording
- ``arrivals``: Poisson, gamma, replayed, piecewise and diurnal
- ``source``: a workload as a user names it
"""

from splitwise.workload.arrivals import Arrivals, Diurnal, Gamma, Piecewise, Poisson, Replay
from splitwise.workload.errors import WorkloadError
from splitwise.workload.generate import generate
from splitwise.workload.reading import read_requests
from splitwise.workload.requests import Requests
from splitwise.workload.sizes import (
    BUILT_IN,
    ConstantSizes,
    QuantileSizes,
    ResampledSizes,
    Sizes,
    built_in_sizes,
)
from splitwise.workload.source import open_source
from splitwise.workload.summary import WorkloadSummary, summarise
from splitwise.workload.writing import write_requests

__all__ = [
    "BUILT_IN",
    "Arrivals",
    "ConstantSizes",
    "Diurnal",
    "Gamma",
    "Piecewise",
    "Poisson",
    "QuantileSizes",
    "Replay",
    "Requests",
    "ResampledSizes",
    "Sizes",
    "WorkloadError",
    "WorkloadSummary",
    "built_in_sizes",
    "generate",
    "open_source",
    "read_requests",
    "summarise",
    "write_requests",
]
