"""What if: each case is what asking anew would say."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from brute_force import highest_rate, least
from toy_offers import FAST, SLOW, offers, toy_question, write_load

from splitwise.planning.plan import Plan, plan
from splitwise.planning.question import Limits, Objective, Offer, Question
from splitwise.planning.sensitivity import Case
from splitwise.planning.workers import Crew, here


def planned(question: Question, store: Path | None = None) -> Plan:
    return plan(question, Crew(here, store))


def cases(found: Plan, change: str) -> list[Case]:
    return [case for case in found.sensitivity if case.change == change]


def priced(question: Question, name: str, factor: float) -> Question:
    return replace(
        question,
        offers=tuple(
            replace(one, times=times_at(one, factor if one.name == name else 1.0))
            for one in question.offers
        ),
    )


def times_at(offer: Offer, factor: float) -> object:
    return replace(offer.times, dollars_per_hour=offer.times.dollars_per_hour * factor)


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Question:
    return toy_question(write_load(tmp_path_factory.mktemp("load")), rate_per_s=7.0)


@pytest.fixture(scope="module")
def found(question: Question) -> Plan:
    return planned(question)


@pytest.mark.parametrize("name", ["fast", "slow"])
@pytest.mark.parametrize(("change", "factor"), [("-20%", 0.8), ("+20%", 1.2)])
def test_another_price_is_another_question(
    question: Question, found: Plan, name: str, change: str, factor: float
) -> None:
    (case,) = cases(found, f"price of {name} {change}")
    assert case.dollars_per_hour == pytest.approx(least(priced(question, name, factor)))
    if factor < 1:
        assert case.dollars_per_hour <= found.best.design.dollars_per_hour
    assert case.rate_per_s == question.rate_per_s


def test_with_a_machine_lost_the_rate_is_that_of_the_smaller_cluster(
    question: Question, found: Plan
) -> None:
    family, counts = found.best.design.family, found.best.design.counts
    lost = cases(found, "one machine lost")
    smaller = [
        [count - (place == which) for place, count in enumerate(counts)]
        for which in range(len(counts))
        if counts[which] > 1
    ]
    assert len(lost) == len(smaller) > 0
    for case, left in zip(lost, smaller, strict=True):
        cluster = tuple(zip(family.pools, family.offers, left, strict=True))
        assert case.rate_per_s == highest_rate(question, cluster)
        assert case.rate_per_s < question.rate_per_s


@pytest.mark.parametrize(("change", "factor"), [("rate -20%", 0.8), ("rate +20%", 1.2)])
def test_another_rate_keeps_the_kinds(
    question: Question, found: Plan, change: str, factor: float
) -> None:
    (case,) = cases(found, change)
    family = found.best.design.family
    assert case.rate_per_s == pytest.approx(7 * factor)
    assert case.design is not None
    for offer in family.offers:
        assert offer.name in case.design
    cost, best = case.dollars_per_hour, found.best.design.dollars_per_hour
    assert cost <= best if factor < 1 else cost >= best


def test_other_loads_are_carried_by_the_same_cluster(found: Plan) -> None:
    for load in ("conversation", "coding"):
        (case,) = cases(found, f"the load is {load}")
        assert case.design == found.best.design.name
        assert case.rate_per_s < 7


def test_a_larger_budget_carries_no_less(question: Question) -> None:
    asked = replace(
        question,
        objective=Objective.THROUGHPUT,
        rate_per_s=None,
        limits=Limits(dollars_per_hour=8.0),
    )
    found = planned(asked)
    (less,), (more,) = cases(found, "limits -20%"), cases(found, "limits +20%")
    assert less.rate_per_s <= found.best.rate_per_s <= more.rate_per_s
    for name in ("fast", "slow"):
        (cheaper,) = cases(found, f"price of {name} -20%")
        (dearer,) = cases(found, f"price of {name} +20%")
        assert dearer.rate_per_s <= found.best.rate_per_s <= cheaper.rate_per_s


def test_without_limits_there_is_no_limit_to_change(question: Question) -> None:
    asked = replace(question, objective=Objective.THROUGHPUT, rate_per_s=None)
    changes = {case.change for case in planned(asked).sensitivity}
    assert not [change for change in changes if change.startswith(("limits", "price"))]


def test_prices_matter_only_where_money_decides(question: Question) -> None:
    found = planned(replace(question, objective=Objective.POWER))
    assert not [case for case in found.sensitivity if case.change.startswith("price")]


def test_a_case_without_an_answer_says_so(question: Question) -> None:
    """The stock carries the rate, but not a fifth more."""
    few = replace(question, offers=(Offer("fast", FAST, 2), Offer("slow", SLOW, 1)))
    most = planned(replace(few, objective=Objective.THROUGHPUT, rate_per_s=None)).best.rate_per_s
    (case,) = cases(planned(replace(few, rate_per_s=most)), "rate +20%")
    assert case.design is None
    assert math.isnan(case.rate_per_s)
    assert math.isnan(case.dollars_per_hour)


def test_prices_are_changed_without_a_simulation(question: Question, tmp_path: Path) -> None:
    """What other prices ask for beyond what the search saw is little, and is kept."""
    store = tmp_path / "known.sqlite"
    planned(question, store)
    cheaper = priced(question, "fast", 0.8)
    assert planned(cheaper, store).simulated == 0


def test_offers_stay_as_they_are(question: Question, found: Plan) -> None:
    assert [offer.times.dollars_per_hour for offer in question.offers] == [
        offer.times.dollars_per_hour for offer in offers()
    ]
    assert found.question is question
