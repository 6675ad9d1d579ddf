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
    if best.design.family.is_split and question.options.change_roles:
        best = with_best_threshold(crew, question, best)
    if question.objective is Objective.THROUGHPUT:  # so far it has all machines that it may have
        (best,) = crew.map("fewer machines", question, lean, [best])
    return best


def with_best_threshold(crew: Crew, question: Question, best: Found) -> Found:
    """With the threshold that carries most, and then the fewest machines."""
    designs = [replace(best.design, queue_threshold_tokens=one) for one in THRESHOLDS]
    rates = crew.map("threshold", question, Judge.most, [best.design, *designs])
    usual, *others = rates
    fastest = max(others)
    if fastest <= usual:
        return best
    design = designs[others.index(fastest)]
    rate = fastest if question.rate_per_s is None else question.rate_per_s
    faster = replace(best, design=design, rate_per_s=rate)
    (better,) = crew.map("fewer machines", question, lean, [faster])
    return min(best, better, key=lambda one: worth(question.objective, one))


def lean(judge: Judge, found: Found) -> Found:
    """The same rate without the machines that are not needed for it."""
    return found_at(judge, shrunk(judge, found.design, found.rate_per_s), found.rate_per_s)


def shrunk(judge: Judge, design: Design, rate_per_s: float) -> Design:
    """Machines are left out one by one, what saves most first, while the rate is carried."""
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
