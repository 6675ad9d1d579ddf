"""Two machine kinds whose times are round numbers, a short load, and questions about them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from toy_cluster import times

from splitwise.planning.demand import Demand
from splitwise.planning.question import Objective, Offer, Question
from splitwise.planning.store import OutcomeStore
from splitwise.planning.trial import Judge
from splitwise.simulation.slowdown import Slo

DURATION_S = 60.0
SLOS = (Slo("ttft", 90, 3.0), Slo("tbt", 90, 2.0), Slo("e2e", 90, 2.0))


def toy_times(prompt_s_per_token: float, decode_s: float, dollars: float, watts: float) -> Any:
    """A batch of 17 decodes takes twice as long as one of 1."""
    decodes = np.arange(513)
    return replace(
        times(prompt_s_per_token, context_s=1e-8, kv_capacity_tokens=20_000, link_bytes_per_s=1e8),
        decode_s=np.where(decodes == 0, 0.0, decode_s * (1 + (decodes - 1) / 16)),
        prompt_watts=np.array([watts * 0.7]),
        decode_watts=watts * 0.4,
        idle_watts=watts * 0.1,
        provisioned_watts=watts,
        dollars_per_hour=dollars,
    )


FAST = toy_times(0.0004, 0.03, dollars=2.2, watts=1700.0)
SLOW = toy_times(0.0010, 0.04, dollars=1.0, watts=900.0)


def offers(fast: int = 4, slow: int = 4) -> tuple[Offer, ...]:
    """Stocks of both kinds."""
    return Offer("fast", FAST, fast), Offer("slow", SLOW, slow)


def write_load(folder: Path, seed: int = 0) -> str:
    """A recording whose sizes are drawn from: prompts of 350 tokens, answers of 30, on average."""
    rng = np.random.default_rng(seed)
    rows = zip(rng.integers(100, 600, 400), rng.integers(1, 60, 400), strict=True)
    path = folder / "load.csv"
    lines = [f"{number},{prompt},{output}" for number, (prompt, output) in enumerate(rows)]
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]))
    return str(path)


def toy_question(source: str, **changes: Any) -> Question:
    """The cheapest of few machines for a few requests a second, unless changed."""
    question = Question(
        demand=Demand(source, "poisson", DURATION_S),
        offers=offers(),
        reference=SLOW,
        objective=Objective.COST,
        rate_per_s=6.0,
        slos=SLOS,
        seeds=(1, 2),
    )
    return replace(question, **changes)


def judge_of(question: Question, store: OutcomeStore | None = None) -> Judge:
    """A judge that remembers only what it is told in this test."""
    return Judge(question, store or OutcomeStore(None))
