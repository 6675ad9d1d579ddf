"""A small question about machines whose times are round numbers."""

from dataclasses import replace

import numpy as np
from toy_cluster import times as toy_times

from splitwise.hardware import IterationTimes
from splitwise.planning.demand import Demand
from splitwise.planning.question import Objective, Offer, Question
from splitwise.simulation.slowdown import Slo

QUICK = "quick"
CHEAP = "cheap <&>"


def times(factor: float, dollars_per_hour: float) -> IterationTimes:
    """A token of a prompt takes 0.1 ms, a decode of one request 21 ms, times ``factor``."""
    decodes = factor * (0.02 + 0.001 * np.arange(513))
    decodes[0] = 0
    toy = toy_times(1e-4 * factor, kv_capacity_tokens=200_000, link_bytes_per_s=1e9)
    return replace(toy, decode_s=decodes, dollars_per_hour=dollars_per_hour)


def question(
    objective: Objective = Objective.COST, rate_per_s: float | None = 12.0, stock: int = 8
) -> Question:
    """Two kinds of machines, and conversations."""
    quick = times(1.0, 2.5)
    return Question(
        Demand("conversation"),
        (Offer(QUICK, quick, stock), Offer(CHEAP, times(1.5, 1.0), stock)),
        quick,
        objective,
        rate_per_s,
        slos=(Slo("ttft", 90, 4.0), Slo("tbt", 90, 2.0), Slo("e2e", 50, 6.0, "s")),
        seeds=(1, 2),
    )
