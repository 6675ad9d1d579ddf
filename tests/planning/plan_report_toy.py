"""A small question about machines whose times are round numbers."""

import numpy as np

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
    return IterationTimes(
        prompt_tokens=np.array([0.0, 1000.0]),
        prompt_s=np.array([0.0, 0.1]) * factor,
        decode_s=decodes,
        decode_s_per_context_token=np.zeros(513),
        mixed_factor=1.1,
        kv_capacity_tokens=200_000,
        kv_bytes_per_token=1000.0,
        layers=10,
        power_tokens=np.array([1.0]),
        prompt_watts=np.array([500.0]),
        decode_watts=300.0,
        idle_watts=50.0,
        provisioned_watts=1000.0,
        dollars_per_hour=dollars_per_hour,
        gpus=8,
        link_bytes_per_s=1e9,
        link_latency_s=0.0,
    )


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
