"""What is tried with the best cluster alone: its queue threshold, and then fewer machines."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from splitwise.planning.design import Design
from splitwise.planning.question import Objective, Question
from splitwise.planning.search import Found, found_at, price, worth
from splitwise.planning.trial import Judge
from splitwise.planning.workers import Crew

THRESHOLDS: Final = (1024, 2048, 4096, 8192, 16384, 32768)
"""Pending prompt tokens past which a queue counts as long; the public simulator has 8192."""


def tuned(crew: Crew, question: Question, best: Found) -> Found:
    """The same cluster with the queue threshold that carries most, and no machine too many."""
    if not (best.design.family.is_split and question.options.change_roles):
        return best
    designs = [replace(best.design, queue_threshold_tokens=one) for one in THRESHOLDS]
    rates = crew.map("threshold", question, Judge.most, [best.design, *designs])
    usual, *others = rates
    fastest = max(others)
    if fastest <= usual:
        return best
    design = designs[others.index(fastest)]
    (better,) = crew.map("fewer machines", question, _with_threshold, [(design, fastest)])
    return min(best, better, key=lambda one: worth(question.objective, one))


def _with_threshold(judge: Judge, item: tuple[Design, float]) -> Found:
    design, fastest = item
    question = judge.question
    if question.objective is Objective.THROUGHPUT:
        return found_at(judge, design, fastest)
    rate = question.rate_per_s or 0.0
    return found_at(judge, shrunk(judge, design, rate), rate)


def shrunk(judge: Judge, design: Design, rate_per_s: float) -> Design:
    """Machines are left out one by one, the dearest choice first, while the rate is carried."""
    while True:
        smaller = [
            design.with_counts(*counts) for counts in _one_less(design.counts) if min(counts) > 0
        ]
        smaller.sort(key=lambda one: price(judge.question.objective, one))
        following = next((one for one in smaller if judge.carries(one, rate_per_s)), None)
        if following is None:
            return design
        design = following


def _one_less(counts: Sequence[int]) -> list[tuple[int, ...]]:
    return [
        tuple(count - (i == which) for i, count in enumerate(counts))
        for which in range(len(counts))
    ]
