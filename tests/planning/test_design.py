"""Clusters that can be counted, against counting them one by one."""

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from toy_offers import FAST, toy_question

from splitwise.planning.design import Design, Family, families, is_within, most_within
from splitwise.planning.errors import PlanningError
from splitwise.planning.question import Limits, Offer
from splitwise.planning.search import most_splits
from splitwise.scheduling.pool import Pool

MOST = 12
tenths = st.integers(0, 30).map(lambda number: number / 10)
"""Prices that floats cannot hold, so that sums are off by rounding."""


@st.composite
def some_offers(draw: st.DrawFn) -> Offer:
    times = replace(FAST, dollars_per_hour=draw(tenths), provisioned_watts=100 * draw(tenths))
    return Offer(draw(st.sampled_from(["one", "other"])), times, draw(st.integers(1, MOST)))


@st.composite
def some_families(draw: st.DrawFn) -> Family:
    """A kind alone, one kind twice, or two kinds."""
    one = draw(some_offers())
    if draw(st.booleans()):
        return Family((one,), (Pool.MIXED,))
    other = draw(some_offers())
    return Family((one, one if other.name == one.name else other), (Pool.PROMPT, Pool.TOKEN))


@st.composite
def some_limits(draw: st.DrawFn) -> Limits:
    above_zero = tenths.map(lambda number: number * 3 + 0.1)
    allowed = [draw(st.just(math.inf) | above_zero) for _ in range(2)]
    machines = draw(st.just(math.inf) | st.integers(1, MOST).map(float))
    return Limits(allowed[0], allowed[1] * 100, machines)


def keeps(family: Family, counts: tuple[int, ...], limits: Limits) -> bool:
    """In exact arithmetic, in tenths."""
    kinds = list(zip(family.offers, counts, strict=True))
    cents = sum(count * round(offer.times.dollars_per_hour * 10) for offer, count in kinds)
    watts = sum(count * round(offer.times.provisioned_watts) for offer, count in kinds)
    taken = [sum(n for one, n in kinds if one.name == offer.name) for offer in family.offers]
    return (
        (math.isinf(limits.dollars_per_hour) or cents <= round(limits.dollars_per_hour * 10))
        and (math.isinf(limits.watts) or watts <= round(limits.watts))
        and sum(counts) <= limits.machines
        and all(n <= offer.stock for n, offer in zip(taken, family.offers, strict=True))
    )


@given(some_families(), some_limits(), st.integers(0, MOST), st.integers(0, MOST))
def test_is_within(family: Family, limits: Limits, one: int, other: int) -> None:
    counts = (one, other)[: len(family.pools)]
    assert Design(family, counts).is_within(limits) == keeps(family, counts, limits)


@given(some_families(), some_limits(), st.integers(0, MOST))
def test_most_within(family: Family, limits: Limits, prompts: int) -> None:
    assume(prompts <= family.offers[0].stock)
    fixed = (prompts,)[: len(family.pools) - 1]
    fitting = [n for n in range(1, MOST + 1) if keeps(family, (*fixed, n), limits)]
    assert most_within(family, fixed, limits) == max(fitting, default=0)


@given(some_families(), some_limits())
def test_most_splits_is_the_last_that_leaves_room_for_a_token_machine(
    family: Family, limits: Limits
) -> None:
    question = toy_question("conversation", limits=limits)
    if family.is_split:
        fitting = [n for n in range(1, MOST + 1) if keeps(family, (n, 1), limits)]
        assert most_splits(family, question) == max(fitting, default=0)
    else:
        assert most_splits(family, question) == 0


def test_one_kind_in_both_pools_shares_its_stock() -> None:
    offer = Offer("kind", FAST, 5)
    family = Family((offer, offer), (Pool.PROMPT, Pool.TOKEN))
    assert most_within(family, (2,), Limits()) == 3
    assert Design(family, (2, 3)).is_within(Limits())
    assert not Design(family, (3, 3)).is_within(Limits())


@pytest.mark.parametrize("count", [1, 2, 4])
def test_families_are_every_kind_alone_and_every_pair(count: int) -> None:
    found = families([Offer(f"kind-{number}", FAST) for number in range(count)])
    assert len({family.name for family in found}) == len(found) == count + count**2
    assert sum(not family.is_split for family in found) == count


def test_totals_are_sums() -> None:
    one, other = Offer("one", FAST), Offer("other", replace(FAST, dollars_per_hour=10.0))
    design = Design(Family((one, other), (Pool.PROMPT, Pool.TOKEN)), (3, 2))
    assert design.name == "3P one + 2T other"
    assert design.dollars_per_hour == pytest.approx(3 * 2.2 + 2 * 10)
    assert (design.watts, design.machines) == (5 * 1700, 5)
    assert is_within(design, Limits(27, 8500, 5))
    assert not is_within(design, Limits(26, 8500, 5))
    assert not is_within(design, Limits(27, 8499, 5))
    assert not is_within(design, Limits(27, 8500, 4))


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["dollars_per_hour", "provisioned_watts"])
def test_prices_and_power_are_numbers_from_zero(name: str, value: float) -> None:
    with pytest.raises(PlanningError, match=rf"{name} of kind is {value:g}; give 0 or more"):
        Offer("kind", replace(FAST, **{name: value}))
