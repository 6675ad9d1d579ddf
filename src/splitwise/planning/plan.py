"""``plan``: from a question to an answer that can be trusted.

1. Targets that nobody could meet are refused (``feasibility``).
2. Every family of clusters is searched (``search``), on all workers.
3. The best is tuned (``tuning``): its queue threshold, and then whether fewer machines do.
4. How sure is it? The highest rate with each seed, and what breaks first beyond it.
5. What if? Prices, rate, workload and machines change a little (``sensitivity``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from splitwise.planning.confidence import Sureness, sureness
from splitwise.planning.design import families
from splitwise.planning.feasibility import check_targets, explain
from splitwise.planning.outcome import Outcome
from splitwise.planning.pareto import front
from splitwise.planning.question import Question
from splitwise.planning.search import FamilyAnswer, Found, best_of, search_family, worth
from splitwise.planning.sensitivity import Case, sensitivity
from splitwise.planning.trial import Judge
from splitwise.planning.tuning import tuned
from splitwise.planning.workers import Crew


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
    family = next(answer for answer in answers if answer.best is best)
    family.best = best = tuned(crew, question, best)
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
