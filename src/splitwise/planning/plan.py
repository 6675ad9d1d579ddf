"""``plan``: from a question to an answer that can be trusted.

1. Targets that nobody could meet are refused (``feasibility``).
2. Every family of clusters is searched (``search``), on all workers.
3. The best is tuned: its queue threshold, and then whether fewer machines do.
4. How sure is it? The highest rate with each seed, and what breaks first beyond it.
5. What if? Prices, rate, workload and machines change a little (``sensitivity``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from splitwise.planning.confidence import Sureness, sureness
from splitwise.planning.design import Design, families
from splitwise.planning.feasibility import check_targets, explain
from splitwise.planning.outcome import Outcome
from splitwise.planning.pareto import front
from splitwise.planning.question import Objective, Question
from splitwise.planning.search import (
    FamilyAnswer,
    Found,
    best_of,
    found_at,
    price,
    search_family,
    worth,
)
from splitwise.planning.sensitivity import Case, sensitivity
from splitwise.planning.trial import Judge
from splitwise.planning.workers import Crew

THRESHOLDS: Final = (1024, 2048, 4096, 8192, 16384, 32768)
"""Pending prompt tokens past which a queue counts as long; the public simulator has 8192."""


@dataclass(frozen=True)
class Breaks:
    """The first rate that is not carried, and the SLOs that are missed there, with any seed."""

    rate_per_s: float
    missed: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """The answer. ``answers`` are the families, best first; ``most`` is how much ``best`` carries.

    ``front`` holds the clusters that no other beats in cost, power and rate together.
    """

    question: Question
    best: Found
    most: Sureness
    breaks: Breaks
    answers: tuple[FamilyAnswer, ...]
    front: tuple[Found, ...]
    sensitivity: tuple[Case, ...]

    @property
    def simulated(self) -> int:
        """Simulations that the search ran; what was known from before is not counted."""
        return sum(answer.simulated for answer in self.answers)


def plan(question: Question, crew: Crew, what_if: bool = True) -> Plan:
    """Answer ``question``; ``what_if`` also asks how the answer changes with its premises.

    Raises:
        Infeasible: nothing on offer does it; says what binds.
    """
    check_targets(crew, question)
    answers = crew.map("clusters", question, search_family, families(question.offers))
    best = best_of(question.objective, answers)
    if best is None:
        raise explain(crew, question)
    best = tuned(crew, question, best)
    (seen,) = crew.map("confidence", question, how_sure, [best])
    most, breaks = seen
    found = [one for answer in answers for one in answer.improvements]
    return Plan(
        question,
        best,
        most,
        breaks,
        tuple(sorted(answers, key=lambda answer: _rank(question, answer))),
        tuple(front([best, *found])),
        tuple(sensitivity(crew, question, best)) if what_if else (),
    )


def _rank(question: Question, answer: FamilyAnswer) -> tuple[float, ...]:
    """The best first, those without an answer last."""
    if answer.best is None:
        return (float("inf"),)
    return worth(question.objective, answer.best)


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


def how_sure(judge: Judge, best: Found) -> tuple[Sureness, Breaks]:
    """The highest rate with each seed, and what is missed a step beyond the rate of all."""
    rates = judge.most_by_seed(best.design)
    beyond = min(rates) + judge.question.resolution_per_s
    return sureness(rates), Breaks(beyond, missed(judge.outcomes(best.design, beyond)))


def missed(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """The SLOs that any of the outcomes misses, by name."""
    names = [
        f"{check.metric.upper()} P{check.percentile}" for one in outcomes for check in one.missed
    ]
    return tuple(dict.fromkeys(names))
