"""Figures about an answer: how sure it is, and which others are worth a look."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_offers import FAST

from splitwise.planning.confidence import sureness
from splitwise.planning.design import Design, Family
from splitwise.planning.outcome import Outcome, Percentiles
from splitwise.planning.pareto import front
from splitwise.planning.plan import missed
from splitwise.planning.question import Offer
from splitwise.planning.search import Found
from splitwise.scheduling.pool import Pool
from splitwise.simulation.slowdown import SloCheck


def test_three_seeds_by_hand() -> None:
    """Mean 12, deviation 2, error 2 / sqrt(3) = 1.1547, times 4.303 of two degrees of freedom."""
    sure = sureness([10.0, 12.0, 14.0])
    assert sure.by_seed == (10.0, 12.0, 14.0)
    assert sure.mean == 12.0
    assert sure.low == pytest.approx(12 - 4.9687, abs=1e-4)
    assert sure.high == pytest.approx(12 + 4.9687, abs=1e-4)


def test_two_seeds_by_hand() -> None:
    """Deviation 1 / sqrt(2), error 0.5, times 12.706."""
    sure = sureness([3.0, 4.0])
    assert (sure.low, sure.high) == pytest.approx((3.5 - 6.353, 3.5 + 6.353))


@pytest.mark.parametrize(("freedom", "t"), [(9, 2.262), (10, 2.228), (20, 2.086), (60, 2.000)])
def test_many_seeds_by_a_table_of_t(freedom: int, t: float) -> None:
    rates = [0.0, 2.0] * (freedom // 2) + [1.0] * (1 + freedom % 2)
    sure = sureness(rates)
    deviation = math.sqrt(2 * (freedom // 2) / freedom)
    half = (sure.high - sure.low) / 2
    assert half / (deviation / math.sqrt(freedom + 1)) == pytest.approx(t, abs=3e-3)


def test_one_seed_has_no_interval() -> None:
    sure = sureness([5.0])
    assert sure.mean == 5.0
    assert math.isnan(sure.low)
    assert math.isnan(sure.high)


def test_the_interval_narrows_as_seeds_are_added() -> None:
    """Also where the table of t ends and the normal distribution takes over."""
    widths = []
    for count in range(1, 12):
        sure = sureness([10.0, 12.0] * count)
        widths.append(sure.high - sure.low)
    assert all(later < earlier for earlier, later in pairwise(widths))


def test_seeds_that_agree_leave_no_doubt() -> None:
    sure = sureness([7.0] * 4)
    assert sure.low == sure.mean == sure.high == 7.0


@st.composite
def clusters(draw: st.DrawFn) -> Found:
    """Few values, so that many are equal in something."""
    small = st.integers(1, 3)
    dollars, watts = float(draw(small)), 100.0 * draw(small)
    times = replace(FAST, dollars_per_hour=dollars, provisioned_watts=watts)
    kind = Offer(f"{dollars:g}-{watts:g}", times)
    design = Design(Family((kind,), (Pool.MIXED,)), (draw(small),))
    return Found(design, float(draw(small)), 1.0)


def figures(found: Found) -> tuple[float, float, float]:
    return found.design.dollars_per_hour, found.design.watts, -found.rate_per_s


@given(st.lists(clusters(), max_size=12))
def test_the_front_is_what_nothing_beats(found: list[Found]) -> None:
    points = {figures(one) for one in found}
    unbeaten = {
        one
        for one in points
        if not any(
            other != one and all(a <= b for a, b in zip(other, one, strict=True))
            for other in points
        )
    }
    kept = front(found)
    assert {figures(one) for one in kept} == unbeaten
    names = [(one.design.name, one.rate_per_s) for one in kept]
    assert len(set(names)) == len(names)
    prices = [one.design.dollars_per_hour for one in kept]
    assert prices == sorted(prices)


def outcome(*is_met: bool) -> Outcome:
    names = (("ttft", 50), ("ttft", 90), ("tbt", 99))
    checks = tuple(
        SloCheck(metric, percent, 1.0, "x", 2.0, met)  # type: ignore[arg-type]
        for (metric, percent), met in zip(names, is_met, strict=True)
    )
    return Outcome(checks, *[Percentiles(1.0, 1.0, 1.0)] * 3, 1, 1.0, 1.0)


def test_what_any_seed_misses_is_named_once() -> None:
    assert missed([outcome(True, True, True)]) == ()
    seen = [outcome(True, False, True), outcome(False, False, True)]
    assert sorted(missed(seen)) == ["TTFT P50", "TTFT P90"]
