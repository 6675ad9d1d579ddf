"""The best cluster with another queue threshold, and without the machines that it saves."""

from dataclasses import replace
from pathlib import Path

import pytest
from brute_force import carries, highest_rate
from toy_offers import SLOW, judge_of, offers, toy_question, write_load

from splitwise.planning.design import Design, Family
from splitwise.planning.plan import Plan, plan
from splitwise.planning.question import Limits, Objective, Offer, Question
from splitwise.planning.tuning import THRESHOLDS, shrunk
from splitwise.planning.workers import Crew, here
from splitwise.scheduling.pool import Pool
from splitwise.simulation.simulate import Options


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Question:
    """A budget with which another threshold carries more, and a kind that nobody would buy."""
    dear = Offer("dear", replace(SLOW, dollars_per_hour=5.0), 1)
    return toy_question(
        write_load(tmp_path_factory.mktemp("load"), seed=3),
        objective=Objective.THROUGHPUT,
        rate_per_s=None,
        limits=Limits(dollars_per_hour=9.0),
        offers=(*offers(8, 8), dear),
    )


@pytest.fixture(scope="module")
def found(question: Question) -> Plan:
    return plan(question, Crew(here, None))


def test_the_threshold_is_the_one_that_carries_most(question: Question, found: Plan) -> None:
    design = found.best.design
    cluster = tuple(zip(design.family.pools, design.family.offers, design.counts, strict=True))
    rates = {
        threshold: highest_rate(
            replace(question, options=Options(queue_threshold_tokens=threshold)), cluster
        )
        for threshold in THRESHOLDS
    }
    assert design.queue_threshold_tokens is not None
    assert found.best.rate_per_s == rates[design.queue_threshold_tokens] == max(rates.values())
    assert found.best.rate_per_s > highest_rate(question, cluster)


def test_what_ifs_are_tuned_where_the_best_is(found: Plan) -> None:
    """Else a lower price, or a larger budget, would seem to carry less."""
    rates = {case.change: case.rate_per_s for case in found.sensitivity}
    best = found.best.rate_per_s
    for name in ("fast", "slow"):
        assert rates[f"price of {name} +20%"] <= best <= rates[f"price of {name} -20%"]
    assert rates["price of dear -20%"] == rates["price of dear +20%"] == best
    assert rates["limits -20%"] <= best <= rates["limits +20%"]


def test_without_role_changes_there_is_no_threshold_to_tune(question: Question) -> None:
    asked = replace(question, options=Options(change_roles=False))
    found = plan(asked, Crew(here, None), what_if=False)
    assert found.best.design.queue_threshold_tokens is None


@pytest.mark.parametrize("objective", [Objective.COST, Objective.POWER, Objective.MACHINES])
def test_machines_are_left_out_until_none_can_be(tmp_path: Path, objective: Objective) -> None:
    question = toy_question(write_load(tmp_path), objective=objective)
    family = Family(question.offers, (Pool.PROMPT, Pool.TOKEN))
    left = shrunk(judge_of(question), Design(family, (4, 4)), 6.0)
    prompts, tokens = left.counts
    for counts in ((prompts, tokens), (prompts - 1, tokens), (prompts, tokens - 1)):
        cluster = tuple(zip(family.pools, family.offers, counts, strict=True))
        is_whole = counts == left.counts
        assert (min(counts) > 0 and carries(question, cluster, 6.0)) == is_whole
