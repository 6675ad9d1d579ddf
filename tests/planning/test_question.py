"""What can be asked, and what is refused with a remedy."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_offers import offers, toy_question

from splitwise.planning.errors import PlanningError
from splitwise.planning.question import Limits, Objective, Offer
from splitwise.simulation.slowdown import PAPER_SLOS, Slo, SummaryError, parse_slo

slos = st.builds(
    Slo,
    st.sampled_from(["ttft", "tbt", "e2e"]),
    st.integers(1, 99),
    st.integers(1, 99_999).map(lambda number: number / 100),
    st.sampled_from(["x", "s"]),
)


@given(slos)
def test_an_slo_is_read_as_it_is_written(slo: Slo) -> None:
    read = parse_slo(str(slo))
    assert (read.metric, read.percentile, read.unit) == (slo.metric, slo.percentile, slo.unit)
    assert read.limit == pytest.approx(slo.limit, rel=1e-5)  # written with six digits
    assert parse_slo(str(read)) == read


def test_the_papers_slos_are_read_as_they_are_written() -> None:
    assert tuple(parse_slo(str(slo)) for slo in PAPER_SLOS) == PAPER_SLOS


@pytest.mark.parametrize(
    ("text", "slo"),
    [
        ("tbt:p99<=200ms", Slo("tbt", 99, 0.2, "s")),
        (" TTFTp90<3X ", Slo("ttft", 90, 3.0, "x")),
        ("e2e:p5=4.5s", Slo("e2e", 5, 4.5, "s")),
    ],
)
def test_forms_of_an_slo(text: str, slo: Slo) -> None:
    assert parse_slo(text) == slo


@pytest.mark.parametrize(
    "text",
    [
        *("", "ttft", "ttft:p90", "ttft:p90<=3", "ttft:p90>=3x", "itl:p90<=3x", "ttft:p100<=3x"),
        *("ttft:p0<=3x", "ttft:p90<=0x", "ttft:p90<=-1x", "ttft:p90<=1.2.3x", "ttft:p90<=.x"),
        *("ttft:p90<=3x3", "ttft:p90<=infs", "ttft:p99.9<=3x", "ttft:p90<=1e3ms"),
    ],
)
def test_a_bad_slo_is_named_with_the_form(text: str) -> None:
    with pytest.raises(SummaryError) as refused:
        parse_slo(text)
    assert repr(text) in str(refused.value)
    assert "write METRIC:pNN<=LIMIT" in str(refused.value) or "above 0" in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offers": ()}, "offers: none; offer at least one"),
        ({"offers": (offers()[0], offers()[0])}, "fast, fast; name each kind once"),
        ({"slos": ()}, "slos: none"),
        ({"seeds": ()}, "seeds: none; give at least one"),
        ({"rate_per_s": None}, "rate_per_s is None; say how many"),
        ({"rate_per_s": -1.0}, "rate_per_s is -1.0; say how many"),
        ({"objective": Objective.THROUGHPUT}, "rate_per_s is 6, but the objective is throughput"),
        ({"resolution_per_s": -1.0}, "resolution_per_s is -1.0; give more than 0"),
        ({"resolution_per_s": math.inf}, "resolution_per_s is inf; give more than 0"),
    ],
)
def test_a_question_without_sense_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanningError, match=words):
        toy_question("conversation", **changes)


@pytest.mark.parametrize("field", ["dollars_per_hour", "watts", "machines"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_limit_below_anything_is_refused(field: str, value: float) -> None:
    with pytest.raises(PlanningError, match=f"{field} is {value:g}; allow more than 0"):
        Limits(**{field: value})


def test_an_offer_of_no_machines_is_refused() -> None:
    with pytest.raises(PlanningError, match="stock of fast is 0; offer at least 1"):
        Offer("fast", offers()[0].times, 0)
