"""The best cluster of one family.

1. A family has one axis: how many prompt machines (none for a baseline). The other count follows:
   as many as limits and stock allow, or as few as carry the rate.
2. The axis is walked coarsely, then finely around the best; up to ``EXHAUSTIVE`` values all of it.
3. At each value one question prunes: can anything here beat the best so far? It is answered by
   arithmetic where possible (``Judge.bound_per_s``, prices), else by one simulation a seed.
4. Where something beats it, bisection finds how far: the highest rate, or the fewest machines.

A machine more never hurts, and a lower rate is never harder: what bisection takes for granted.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from splitwise.planning.design import Design, Family, most_within
from splitwise.planning.question import Objective, Question
from splitwise.planning.trial import Judge

EXHAUSTIVE: Final = 32
COARSE_STEPS: Final = 16
FINEST_BLIND_STEPS: Final = 64
"""Where nothing carries the rate at all, the axis is cut into no more parts than these."""

OUT_OF_LIMITS: Final = "over a limit or the stock"
NO_BETTER: Final = "no better, whatever it carries"
TOO_SLOW: Final = "cannot compute the prompts, by arithmetic"
MISSES: Final = "misses an SLO where it would have to hold"


@dataclass(frozen=True, eq=False)
class Found:
    """A cluster and a rate that it carries; ``joules_per_token`` at that rate, by simulation."""

    design: Design
    rate_per_s: float
    joules_per_token: float


@dataclass(eq=False)
class FamilyAnswer:
    """The best of a family, if any, all that beat another on the way, and what was left out why."""

    family: Family
    best: Found | None = None
    improvements: list[Found] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    splits: int = 0
    tried: int = 0
    simulated: int = 0


def search_family(judge: Judge, family: Family) -> FamilyAnswer:
    """The best cluster of the family for the judge's question."""
    answer = FamilyAnswer(family)
    before = judge.simulated
    answer.splits = most_splits(family, judge.question)
    if not family.is_split:
        try_split(judge, answer, ())
    for prompts in coarse_to_fine(answer):
        try_split(judge, answer, (prompts,))
    answer.simulated = judge.simulated - before
    return answer


def most_splits(family: Family, question: Question) -> int:
    """The length of the axis: the most prompt machines that leave room for a token machine."""
    if not family.is_split:
        return 0
    alone = Family(family.offers[:1], family.pools[:1])
    most = most_within(alone, (), question.limits)
    while most > 0 and most_within(family, (most,), question.limits) < 1:
        most -= 1
    return most


def coarse_to_fine(answer: FamilyAnswer) -> Iterator[int]:
    """Values of the axis: coarse steps, then around the best, or everywhere if there is none."""
    if answer.splits == 0:
        return
    step = 1 if answer.splits <= EXHAUSTIVE else math.ceil(answer.splits / COARSE_STEPS)
    seen = set(range(1, answer.splits + 1, step))
    yield from sorted(seen)
    while step > 1:
        step = math.ceil(step / 2)
        if answer.best is None:
            if answer.splits / step > FINEST_BLIND_STEPS:
                return
            following = [one for one in range(1, answer.splits + 1, step) if one not in seen]
        else:
            following = [one for one in around(answer, step) if one not in seen]
        seen.update(following)
        yield from following
    while following := [one for one in around(answer, 1) if one not in seen]:
        seen.update(following)
        yield from following


def around(answer: FamilyAnswer, step: int) -> list[int]:
    """The two values a step away from the best, within the axis."""
    if answer.best is None:
        return []
    centre = answer.best.design.counts[0]
    return [one for one in (centre - step, centre + step) if 1 <= one <= answer.splits]


def try_split(judge: Judge, answer: FamilyAnswer, fixed: tuple[int, ...]) -> None:
    """Look for something better than the best with these counts of all groups but the last."""
    answer.tried += 1
    objective = judge.question.objective
    if objective is Objective.THROUGHPUT:
        found = faster(judge, answer, fixed)
    elif objective is Objective.ENERGY:
        found = thriftier(judge, answer, fixed)
    else:
        found = cheaper(judge, answer, fixed)
    if found is not None:
        answer.best = found
        answer.improvements.append(found)


def faster(judge: Judge, answer: FamilyAnswer, fixed: tuple[int, ...]) -> Found | None:
    """A higher rate, with as many machines as there may be."""
    most = most_within(answer.family, fixed, judge.question.limits)
    if most < 1:
        answer.left_out[OUT_OF_LIMITS] += 1
        return None
    design = Design(answer.family, (*fixed, most))
    wanted = judge.next_rate_per_s(answer.best.rate_per_s if answer.best is not None else 0.0)
    if not can_carry(judge, answer, design, wanted):
        return None
    return found_at(judge, design, judge.most(design, carried=wanted))


def cheaper(judge: Judge, answer: FamilyAnswer, fixed: tuple[int, ...]) -> Found | None:
    """A lower price in the objective's currency, at the question's rate."""
    question = judge.question
    rate = question.rate_per_s or 0.0
    most = most_within(answer.family, fixed, question.limits)
    if most < 1:
        answer.left_out[OUT_OF_LIMITS] += 1
        return None
    while most > 0 and not beats(question.objective, answer, Design(answer.family, (*fixed, most))):
        most -= 1
    if most < 1:
        answer.left_out[NO_BETTER] += 1
        return None
    if not can_carry(judge, answer, Design(answer.family, (*fixed, most)), rate):
        return None
    return found_at(judge, fewest(judge, answer.family, fixed, most, rate), rate)


def thriftier(judge: Judge, answer: FamilyAnswer, fixed: tuple[int, ...]) -> Found | None:
    """Fewer joules a token, at the question's rate: idle machines cost, and so do full batches."""
    rate = judge.question.rate_per_s or 0.0
    most = most_within(answer.family, fixed, judge.question.limits)
    if most < 1:
        answer.left_out[OUT_OF_LIMITS] += 1
        return None
    if not can_carry(judge, answer, Design(answer.family, (*fixed, most)), rate):
        return None
    best = found_at(judge, fewest(judge, answer.family, fixed, most, rate), rate)
    while best.design.counts[-1] < most:
        more = (*best.design.counts[:-1], best.design.counts[-1] + 1)
        found = found_at(judge, Design(answer.family, more), rate)
        if found.joules_per_token >= best.joules_per_token:
            break
        best = found
    if answer.best is not None and best.joules_per_token >= answer.best.joules_per_token:
        answer.left_out[NO_BETTER] += 1
        return None
    return best


def can_carry(judge: Judge, answer: FamilyAnswer, design: Design, rate_per_s: float) -> bool:
    """Whether it carries the rate; books why not."""
    if judge.bound_per_s(design) < rate_per_s:
        answer.left_out[TOO_SLOW] += 1
        return False
    if not judge.carries(design, rate_per_s):
        answer.left_out[MISSES] += 1
        return False
    return True


def fewest(
    judge: Judge, family: Family, fixed: tuple[int, ...], most: int, rate_per_s: float
) -> Design:
    """The fewest machines of the last group that carry the rate, given that ``most`` do."""
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        design = Design(family, (*fixed, middle))
        if judge.bound_per_s(design) >= rate_per_s and judge.carries(design, rate_per_s):
            high = middle
        else:
            low = middle
    return Design(family, (*fixed, high))


def found_at(judge: Judge, design: Design, rate_per_s: float) -> Found:
    """With the energy at that rate, on average over the seeds."""
    outcomes = judge.outcomes(design, rate_per_s)
    joules = sum(outcome.joules_per_token for outcome in outcomes) / len(outcomes)
    return Found(design, rate_per_s, joules)


def price(objective: Objective, design: Design) -> tuple[float, ...]:
    """What a cluster is compared by; equal prices by what else it takes."""
    cost, watts, machines = design.dollars_per_hour, design.watts, float(design.machines)
    match objective:
        case Objective.POWER:
            return watts, cost, machines
        case Objective.MACHINES:
            return machines, cost, watts
        case _:
            return cost, watts, machines


def worth(objective: Objective, found: Found) -> tuple[float, ...]:
    """What is least for the best answer: the objective, then what else it takes."""
    match objective:
        case Objective.THROUGHPUT:
            return (-found.rate_per_s, *price(objective, found.design))
        case Objective.ENERGY:
            return (found.joules_per_token, *price(objective, found.design))
        case _:
            return price(objective, found.design)


def best_of(objective: Objective, answers: Iterable[FamilyAnswer]) -> Found | None:
    """The best that any family has."""
    found = [answer.best for answer in answers if answer.best is not None]
    return min(found, key=lambda one: worth(objective, one), default=None)


def beats(objective: Objective, answer: FamilyAnswer, design: Design) -> bool:
    """Whether it costs less than the best so far."""
    best = answer.best
    return best is None or price(objective, design) < price(objective, best.design)
