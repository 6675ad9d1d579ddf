"""Where there is no answer, the error says what binds, and the figure it names would do."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from brute_force import dollars_of, every_cluster, highest_rate, least, machines_of, run, watts_of
from toy_offers import FAST, SLOW, offers, toy_question, toy_times, write_load

from splitwise.planning.errors import Infeasible
from splitwise.planning.feasibility import LONE_RATE_PER_S
from splitwise.planning.plan import plan
from splitwise.planning.question import Limits, Objective, Offer, Question
from splitwise.planning.workers import Crew, here
from splitwise.scheduling.pool import Pool
from splitwise.simulation.slowdown import parse_slo


def refusal(question: Question) -> str:
    with pytest.raises(Infeasible) as caught:
        plan(question, Crew(here, None), what_if=False)
    return str(caught.value)


def is_answered(question: Question) -> bool:
    try:
        plan(question, Crew(here, None), what_if=False)
    except Infeasible:
        return False
    return True


def test_a_target_that_nobody_meets_alone_is_named(tmp_path: Path) -> None:
    """600 tokens of the longest prompts take 0.24 s on the fastest kind."""
    slos = (parse_slo("ttft:p50<=2x"), parse_slo("ttft:p99<=200ms"))
    said = refusal(toy_question(write_load(tmp_path), slos=slos))
    form = re.search(r"slo ttft:p99<=200ms: .* reaches ([\d.]+)ms on fast mixed", said)
    assert form is not None, said
    assert float(form[1]) == pytest.approx(240, rel=0.02)


def test_the_limit_that_is_reached_alone_is_allowed(tmp_path: Path) -> None:
    question = toy_question(write_load(tmp_path), slos=(parse_slo("ttft:p99<=200ms"),))
    reached = re.search(r"reaches ([\d.]+)ms", refusal(question))
    assert reached is not None
    looser = parse_slo(f"ttft:p99<={float(reached[1]) * 1.01}ms")
    assert is_answered(replace(question, rate_per_s=0.1, resolution_per_s=0.1, slos=(looser,)))


@pytest.mark.parametrize("arrivals", ["poisson", "gamma:8"])
@pytest.mark.parametrize("duration_s", [1.0, 60.0])
def test_a_short_or_bursty_load_does_not_make_targets_impossible(
    tmp_path: Path, arrivals: str, duration_s: float
) -> None:
    """Of such loads the few lone requests would be none, or would meet."""
    question = toy_question(write_load(tmp_path), slos=(parse_slo("ttft:p50<=1.2x"),))
    demand = replace(question.demand, arrivals=arrivals, duration_s=duration_s)
    asked = replace(question, demand=demand, reference=FAST, rate_per_s=5.0)
    try:
        plan(asked, Crew(here, None), what_if=False)
    except Infeasible as refused:
        assert "to itself" not in str(refused)


def test_kinds_that_need_each_other_are_not_refused(tmp_path: Path) -> None:
    """Neither kind alone finishes in time: one computes prompts slowly, the other tokens."""
    quick_prompts = toy_times(0.0002, 0.2, dollars=1.0, watts=500.0)
    quick_tokens = toy_times(0.02, 0.02, dollars=1.0, watts=500.0)
    question = toy_question(
        write_load(tmp_path),
        offers=(Offer("prompts", quick_prompts, 3), Offer("tokens", quick_tokens, 3)),
        slos=(parse_slo("e2e:p99<=2500ms"),),
        rate_per_s=1.0,
    )
    best = plan(question, Crew(here, None), what_if=False).best
    assert best.design.family.name == "prompts prompt + tokens token"
    for offer in question.offers:
        alone = replace(question, offers=(offer,))
        assert not run(alone, ((Pool.MIXED, offer, 3),), LONE_RATE_PER_S * 5, seed=1)[0]
        assert "slo e2e:p99<=2500ms" in refusal(alone)


@pytest.mark.parametrize(
    ("field", "objective", "allowed"),
    [
        ("dollars_per_hour", Objective.COST, 3.5),
        ("watts", Objective.POWER, 2700.0),
        ("machines", Objective.MACHINES, 2.0),
    ],
)
def test_a_limit_is_named_with_what_is_needed(
    tmp_path: Path, field: str, objective: Objective, allowed: float
) -> None:
    """The need is what brute force finds with that limit lifted; with it there is an answer."""
    question = toy_question(write_load(tmp_path), limits=Limits(**{field: allowed}))
    said = refusal(question)
    form = re.search(rf"{field}: {allowed:g} allowed, ([\d.]+) .*? needed \(\+(\d+)%\)", said)
    assert form is not None, said
    needed = least(replace(question, limits=Limits(), objective=objective))
    assert float(form[1]) == pytest.approx(needed)
    assert int(form[2]) == round(100 * (needed / allowed - 1))
    assert is_answered(replace(question, limits=Limits(**{field: float(form[1])})))


def test_every_limit_that_binds_is_named_with_the_others_kept(tmp_path: Path) -> None:
    limits = Limits(dollars_per_hour=3.5, machines=3.0)
    question = toy_question(write_load(tmp_path), limits=limits)
    said = refusal(question)
    needed = least(replace(question, limits=replace(limits, dollars_per_hour=math.inf)))
    assert f"dollars_per_hour: 3.5 allowed, {needed:g} dollars an hour needed" in said
    assert "machines: 3 allowed; more of it alone would not help" in said


def test_the_most_that_the_limits_carry_is_named(tmp_path: Path) -> None:
    question = toy_question(write_load(tmp_path), limits=Limits(machines=2))
    most = max(highest_rate(question, cluster) for cluster in every_cluster(question))
    assert f"the most is {most:g}/s, by " in refusal(question)


def test_a_stock_that_is_too_small_is_named(tmp_path: Path) -> None:
    question = toy_question(write_load(tmp_path), offers=offers(1, 1), rate_per_s=8.0)
    said = refusal(question)
    form = re.search(r"stock: (.*) would do", said)
    assert form is not None, said
    larger = replace(question, offers=offers(4, 4), objective=Objective.MACHINES)
    assert sum(map(int, re.findall(r"(\d+)[PTM]", form[1]))) == least(larger)


def test_a_rate_that_no_stock_carries(tmp_path: Path) -> None:
    question = toy_question(write_load(tmp_path), offers=offers(1, 1), rate_per_s=900.0)
    assert "4 times as many machines of each kind would not help" in refusal(question)


def test_limits_below_one_machine_are_named_without_a_rate(tmp_path: Path) -> None:
    """The most throughput of a budget that buys nothing."""
    question = toy_question(
        write_load(tmp_path),
        objective=Objective.THROUGHPUT,
        rate_per_s=None,
        limits=Limits(dollars_per_hour=0.5),
    )
    said = refusal(question)
    assert "carries any load" in said
    unlimited = replace(question, limits=Limits(), objective=Objective.COST, rate_per_s=1.0)
    assert f"dollars_per_hour: 0.5 allowed, {least(unlimited):g} dollars" in said


def test_large_needs_are_not_rounded_down(tmp_path: Path) -> None:
    """1,234,567.5 watts are not 1.23457e+06."""
    heavy = replace(SLOW, provisioned_watts=1_234_567.5)
    question = toy_question(
        write_load(tmp_path),
        offers=(Offer("heavy", heavy, 3),),
        limits=Limits(watts=1_000_000.0),
        slos=(parse_slo("ttft:p50<=9x"),),
        rate_per_s=0.5,
        resolution_per_s=0.5,
    )
    assert "1234567.5 watts needed" in refusal(question)


def test_brute_force_counts_what_clusters_take() -> None:
    """The yardstick itself."""
    cluster = ((Pool.PROMPT, offers()[0], 2), (Pool.TOKEN, offers()[1], 3))
    assert dollars_of(cluster) == pytest.approx(2 * 2.2 + 3)
    assert watts_of(cluster) == 2 * 1700 + 3 * 900
    assert machines_of(cluster) == 5
