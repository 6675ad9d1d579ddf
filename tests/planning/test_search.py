"""The search agrees with brute force, which simulates every cluster there could be."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from brute_force import carries, every_cluster, highest_rate, least
from toy_offers import (
    DURATION_S,
    FAST,
    SLOS,
    SLOW,
    judge_of,
    offers,
    toy_question,
    toy_times,
    write_load,
)

from splitwise.planning.demand import Demand
from splitwise.planning.design import families
from splitwise.planning.question import Limits, Objective, Offer, Question
from splitwise.planning.search import (
    EXHAUSTIVE,
    FamilyAnswer,
    Found,
    best_of,
    search_family,
    try_split,
)
from splitwise.simulation.slowdown import PAPER_SLOS

AT_A_RATE = (Objective.COST, Objective.POWER, Objective.MACHINES, Objective.ENERGY)


def searched(question: Question) -> Found | None:
    judge = judge_of(question)
    answers = [search_family(judge, family) for family in families(question.offers)]
    return best_of(question.objective, answers)


def figure(objective: Objective, found: Found) -> float:
    match objective:
        case Objective.COST:
            return found.design.dollars_per_hour
        case Objective.POWER:
            return found.design.watts
        case Objective.MACHINES:
            return found.design.machines
        case Objective.ENERGY:
            return found.joules_per_token
        case Objective.THROUGHPUT:
            return -found.rate_per_s


def cluster_of(found: Found) -> Any:
    family = found.design.family
    return tuple(zip(family.pools, family.offers, found.design.counts, strict=True))


def drawn_question(folder: Path, seed: int) -> Question:
    """Other kinds, stocks, limits, SLOs, load and luck with every seed."""
    rng = np.random.default_rng(seed)
    kinds = [
        toy_times(
            rng.uniform(0.0003, 0.0012),
            rng.uniform(0.02, 0.06),
            dollars=rng.uniform(0.5, 3.0),
            watts=rng.uniform(500.0, 2000.0),
        )
        for _ in range(2)
    ]
    stocks = rng.integers(3, 7, 2)
    limits = [rng.uniform(5, 14), rng.uniform(4000, 10_000), float(rng.integers(4, 10))]
    is_limited = rng.random(3) < 0.4
    return toy_question(
        write_load(folder, seed),
        offers=tuple(map(Offer, ("one", "other"), kinds, (int(stock) for stock in stocks))),
        reference=kinds[int(rng.integers(2))],
        limits=Limits(*np.where(is_limited, limits, math.inf).tolist()),
        slos=PAPER_SLOS if seed % 2 else SLOS,
        seeds=(seed, seed + 1),
    )


@pytest.mark.parametrize("seed", range(8))
def test_no_cluster_carries_more(tmp_path: Path, seed: int) -> None:
    """Where a rate is missed by chance but a higher one is not, bisection may find the higher."""
    question = drawn_question(tmp_path, seed)
    asked = replace(question, objective=Objective.THROUGHPUT, rate_per_s=None)
    most = max(highest_rate(question, cluster) for cluster in every_cluster(question))
    best = searched(asked)
    assert most > 0
    assert best is not None
    assert best.rate_per_s >= most
    assert carries(question, cluster_of(best), best.rate_per_s)
    beyond = best.rate_per_s + question.resolution_per_s
    assert not any(carries(question, one, beyond) for one in every_cluster(question))


@pytest.mark.parametrize("objective", AT_A_RATE)
@pytest.mark.parametrize("seed", range(8))
def test_no_cluster_takes_less(tmp_path: Path, seed: int, objective: Objective) -> None:
    question = replace(drawn_question(tmp_path, seed), rate_per_s=2.0 + seed, objective=objective)
    rate = question.rate_per_s or 0.0
    best = searched(question)
    if best is None:
        assert not any(carries(question, one, rate) for one in every_cluster(question))
    else:
        assert carries(question, cluster_of(best), rate)
        assert figure(objective, best) == pytest.approx(least(question))


@pytest.mark.parametrize(
    ("objective", "rate_per_s", "dollars"),
    [
        *((Objective.THROUGHPUT, None, dollars) for dollars in (84.0, 87.0, 90.0)),
        *((objective, 60.0, 90.0) for objective in AT_A_RATE),
    ],
)
def test_coarse_to_fine_misses_nothing(
    tmp_path: Path, objective: Objective, rate_per_s: float | None, dollars: float
) -> None:
    """On an axis of 60 values, what trying each of them finds.

    Energy a token is flat around its least, and chance moves that: a thousandth is allowed.
    """
    question = toy_question(
        write_load(tmp_path),
        demand=Demand(write_load(tmp_path), "poisson", DURATION_S / 3),
        offers=offers(61, 61),
        objective=objective,
        rate_per_s=rate_per_s,
        limits=Limits(dollars_per_hour=dollars, watts=80_000.0),
        seeds=(1,),
    )
    family = next(
        one for one in families(question.offers) if one.name == "slow prompt + fast token"
    )
    judge = judge_of(question)
    found = search_family(judge, family)
    every = FamilyAnswer(family, splits=found.splits)
    for prompts in range(1, found.splits + 1):
        try_split(judge, every, (prompts,))
    assert found.splits > EXHAUSTIVE
    assert found.tried < found.splits / 2
    assert found.best is not None
    assert every.best is not None
    best, least_there = figure(objective, found.best), figure(objective, every.best)
    tolerance = 1e-3 if objective is Objective.ENERGY else 1e-9
    assert best == pytest.approx(least_there, rel=tolerance)


def test_a_smaller_stock_is_never_better(tmp_path: Path) -> None:
    source = write_load(tmp_path)
    costs = []
    for fast in (1, 2, 4):
        best = searched(toy_question(source, offers=offers(fast, 4)))
        costs.append(best.design.dollars_per_hour if best else math.inf)
    assert costs == sorted(costs, reverse=True)


def test_what_was_left_out_is_counted(tmp_path: Path) -> None:
    """Every value of the axis is either an improvement or left out for a reason."""
    question = toy_question(write_load(tmp_path), limits=Limits(machines=6))
    judge = judge_of(question)
    for family in families((Offer("fast", FAST, 5), Offer("slow", SLOW, 5))):
        answer = search_family(judge, family)
        assert answer.tried == max(answer.splits, 1)
        assert answer.tried == len(answer.improvements) + answer.left_out.total()
