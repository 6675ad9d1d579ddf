"""What if the premises were a little different?

Prices a fifth up or down, the rate (or the limits) likewise, the other built-in workload, one
machine of each group lost. Searches that only prices change simulate next to nothing anew.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from splitwise.planning.design import Design, Family, families
from splitwise.planning.question import Limits, Objective, Offer, Question
from splitwise.planning.search import Found, best_of, search_family, worth
from splitwise.planning.trial import Judge
from splitwise.planning.tuning import tuned
from splitwise.planning.workers import Crew
from splitwise.workload import BUILT_IN

SHARE: Final = 0.2


@dataclass(frozen=True)
class Case:
    """A change, the best cluster then (or the same, if it is only asked what it carries).

    ``design`` is None if there is none.
    """

    change: str
    design: str | None
    dollars_per_hour: float
    watts: float
    rate_per_s: float


def sensitivity(crew: Crew, question: Question, best: Found) -> Iterator[Case]:
    """Every case, the best cluster being known."""
    yield from _price_cases(crew, question, best)
    yield from _size_cases(crew, question, best)
    yield from _workload_cases(crew, question, best)
    yield from _loss_cases(crew, question, best)


def _price_cases(crew: Crew, question: Question, best: Found) -> Iterator[Case]:
    """Only where money decides. The best cluster carries what it did, whatever it costs now."""
    has_budget = math.isfinite(question.limits.dollars_per_hour)
    if len(question.offers) < 2 or not (has_budget or question.objective is Objective.COST):
        return
    for offer in question.offers:
        for factor in (1 - SHARE, 1 + SHARE):
            offers = tuple(_priced(one, factor) if one is offer else one for one in question.offers)
            change = f"price of {offer.name} {factor - 1:+.0%}"
            asked = replace(question, offers=offers)
            same = replace(best, design=_offered(best.design, offers))
            found = _searched(crew, change, asked, families(offers), best)
            yield _case_of(change, _better(asked, found, same))


def _priced(offer: Offer, factor: float) -> Offer:
    dollars = offer.times.dollars_per_hour * factor
    return replace(offer, times=replace(offer.times, dollars_per_hour=dollars))


def _offered(design: Design, offers: Sequence[Offer]) -> Design:
    """The same cluster of these offers."""
    named = {offer.name: offer for offer in offers}
    family = Family(tuple(named[one.name] for one in design.family.offers), design.family.pools)
    return replace(design, family=family)


def _better(question: Question, found: Found | None, same: Found) -> Found | None:
    """The better of the two that keeps the limits."""
    if not same.design.is_within(question.limits):
        return found
    if found is None:
        return same
    return min(found, same, key=lambda one: worth(question.objective, one))


def _size_cases(crew: Crew, question: Question, best: Found) -> Iterator[Case]:
    """With the kinds as they are; without a rate and a limit there is no size to change."""
    if question.rate_per_s is None and question.limits == Limits():
        return
    for factor in (1 - SHARE, 1 + SHARE):
        if question.rate_per_s is not None:
            changed = replace(question, rate_per_s=question.rate_per_s * factor)
            change = f"rate {factor - 1:+.0%}"
        else:
            limits = question.limits
            scaled = Limits(
                limits.dollars_per_hour * factor, limits.watts * factor, limits.machines * factor
            )
            changed = replace(question, limits=scaled)
            change = f"limits {factor - 1:+.0%}"
        yield _case_of(change, _searched(crew, change, changed, [best.design.family], best))


def _searched(
    crew: Crew, change: str, question: Question, among: Sequence[Family], best: Found
) -> Found | None:
    """The best answer; tuned where ``best`` is, so that both can be compared."""
    answers = crew.map(f"if {change}", question, search_family, among)
    found = best_of(question.objective, answers)
    if found is None or best.design.queue_threshold_tokens is None:
        return found
    return tuned(crew, question, found)


def _case_of(change: str, found: Found | None) -> Case:
    if found is None:
        return Case(change, None, *[float("nan")] * 3)
    return _case(change, found.design, found.rate_per_s)


def _case(change: str, design: Design, rate_per_s: float) -> Case:
    return Case(change, design.name, design.dollars_per_hour, design.watts, rate_per_s)


def _workload_cases(crew: Crew, question: Question, best: Found) -> Iterator[Case]:
    for source in BUILT_IN:
        if source == question.demand.source:
            continue
        changed = replace(question, demand=replace(question.demand, source=source, arrivals=None))
        (rate,) = crew.map(f"if {source}", changed, Judge.most, [best.design])
        yield _case(f"the load is {source}", best.design, rate)


def _loss_cases(crew: Crew, question: Question, best: Found) -> Iterator[Case]:
    """One machine of a group out of service: what the others carry."""
    designs = [
        best.design.with_counts(
            *(count - (i == which) for i, count in enumerate(best.design.counts))
        )
        for which, count in enumerate(best.design.counts)
        if count > 1
    ]
    rates = crew.map("if a machine is lost", question, Judge.most, designs)
    for design, rate in zip(designs, rates, strict=True):
        yield _case("one machine lost", design, rate)
