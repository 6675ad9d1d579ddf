"""What a cluster carries: bisection against a plain scan, the bound, and the same luck for all."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from brute_force import carries, highest_rate, run
from toy_offers import FAST, SLOW, judge_of, offers, toy_question, toy_times, write_load

from splitwise.planning.demand import MIN_REQUESTS, Demand
from splitwise.planning.design import Design, Family
from splitwise.planning.errors import PlanningError
from splitwise.planning.question import Offer
from splitwise.scheduling.pool import Pool
from splitwise.simulation.simulate import Options
from splitwise.workload import read_requests

ONE, OTHER = offers()
DESIGNS = (
    Design(Family((ONE,), (Pool.MIXED,)), (2,)),
    Design(Family((OTHER,), (Pool.MIXED,)), (3,)),
    Design(Family((ONE, OTHER), (Pool.PROMPT, Pool.TOKEN)), (1, 2)),
    Design(Family((OTHER, OTHER), (Pool.PROMPT, Pool.TOKEN)), (3, 1)),
)
named = pytest.mark.parametrize("design", DESIGNS, ids=lambda design: design.name)


def cluster_of(design: Design) -> tuple[tuple[Pool, Offer, int], ...]:
    return tuple(zip(design.family.pools, design.family.offers, design.counts, strict=True))


@named
@pytest.mark.parametrize("resolution_per_s", [1.0, 0.25])
def test_most_is_the_last_rate_of_a_plain_scan(
    tmp_path: Path, design: Design, resolution_per_s: float
) -> None:
    question = toy_question(write_load(tmp_path), resolution_per_s=resolution_per_s)
    cluster, most = cluster_of(design), highest_rate(question, cluster_of(design))
    for steps in range(1, 9):  # monotone, which bisection takes for granted
        assert not carries(question, cluster, most + steps * resolution_per_s)
    judge = judge_of(question)
    assert judge.most(design) == most > 0
    assert judge.most(design, carried=most) == most


@named
def test_most_by_seed_is_the_last_rate_with_that_seed(tmp_path: Path, design: Design) -> None:
    question = toy_question(write_load(tmp_path), seeds=(1, 2, 3))
    alone = [
        highest_rate(replace(question, seeds=(seed,)), cluster_of(design)) for seed in (1, 2, 3)
    ]
    assert judge_of(question).most_by_seed(design) == alone


@named
def test_the_bound_is_never_exceeded(tmp_path: Path, design: Design) -> None:
    question = toy_question(write_load(tmp_path))
    assert highest_rate(question, cluster_of(design)) <= judge_of(question).bound_per_s(design)


def test_the_bound_is_prompt_arithmetic(tmp_path: Path) -> None:
    """Two machines of 2,500 and one of 1,000 prompt tokens a second."""
    source = write_load(tmp_path)
    design = Design(Family((ONE, OTHER), (Pool.PROMPT, Pool.TOKEN)), (2, 1))
    mean = read_requests(source).prompt_tokens.mean()
    bound = judge_of(toy_question(source)).bound_per_s(design)
    assert bound == pytest.approx((2 * 2500 + 1000) / mean)


def test_the_bound_knows_prompts_longer_than_a_batch(tmp_path: Path) -> None:
    """Of a machine whose iterations are dear at any length, long prompts are the cheapest."""
    times = replace(SLOW, prompt_s=np.array([0.5, 0.6]))
    path = tmp_path / "long.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "0,8000,2\n1,8000,2\n" * 20)
    options = Options(batch_tokens=512)
    question = toy_question(str(path), options=options, reference=times, seeds=(1,))
    design = Design(Family((Offer("dear", times, 4),), (Pool.MIXED,)), (4,))
    bound = judge_of(question).bound_per_s(design)
    assert bound == pytest.approx(4 / (0.5 + 0.1 * 8))
    assert 1.0 <= highest_rate(question, cluster_of(design)) <= bound


def test_nothing_is_simulated_at_or_past_the_bound(tmp_path: Path) -> None:
    """However lenient the targets: the queue would grow for as long as the load lasts."""
    slos = (replace(toy_question("conversation").slos[0], limit=1e9),)
    judge = judge_of(toy_question(write_load(tmp_path), slos=slos))
    bound = judge.bound_per_s(DESIGNS[0])
    assert bound - 1 < judge.most(DESIGNS[0]) <= bound


@pytest.mark.parametrize("source", ["conversation", "coding", "recording"])
def test_the_same_seed_is_the_same_luck_at_every_rate(tmp_path: Path, source: str) -> None:
    """The same sizes in the same order, at the same times but for the rate."""
    arrivals = "poisson" if source == "recording" else None
    demand = Demand(write_load(tmp_path) if source == "recording" else source, arrivals, 100.0)
    slow, quick = demand.requests(4.0, 7), demand.requests(6.0, 7)
    shared = len(slow)
    assert 0 < shared < len(quick)
    assert (slow.prompt_tokens == quick.prompt_tokens[:shared]).all()
    assert (slow.output_tokens == quick.output_tokens[:shared]).all()
    np.testing.assert_allclose(slow.arrival_s * 4, quick.arrival_s[:shared] * 6)
    other = demand.requests(4.0, 8)
    assert not (other.prompt_tokens[:50] == slow.prompt_tokens[:50]).all()


def test_an_outcome_is_what_the_simulator_says(tmp_path: Path) -> None:
    question = toy_question(write_load(tmp_path))
    for design in DESIGNS:
        for rate in (2.0, 5.0):
            meets, joules = run(question, cluster_of(design), rate, 1)
            outcome = judge_of(question).outcome(design, rate, 1)
            assert outcome.meets_slos == meets == (outcome.missed == ())
            assert outcome.joules_per_token == pytest.approx(joules)


def test_a_queue_threshold_of_the_design_goes_before_the_rules(tmp_path: Path) -> None:
    question = toy_question(write_load(tmp_path))
    design = DESIGNS[2]
    low = replace(question, options=Options(queue_threshold_tokens=64))
    ours = judge_of(question).outcome(replace(design, queue_threshold_tokens=64), 6.0, 1)
    assert ours == judge_of(low).outcome(design, 6.0, 1)
    assert ours != judge_of(question).outcome(design, 6.0, 1)


def test_a_load_lasts_as_long_as_a_percentile_needs() -> None:
    demand = Demand("coding")
    assert demand.duration_at(100.0) == 240.0
    assert demand.duration_at(10.0) == MIN_REQUESTS / 10
    assert demand.warm_up_at(10.0) == 75.0
    assert replace(demand, duration_s=30.0).duration_at(10.0) == 30.0


def test_a_recording_that_ends_early_warms_up_for_a_share_of_itself(tmp_path: Path) -> None:
    """400 requests take 40 s at 10/s; 3,000 would take 300 s, and warm up for 75."""
    demand = Demand(write_load(tmp_path))
    load = demand.requests(10.0, 1)
    assert demand.warm_up_at(10.0) == pytest.approx(load.arrival_s[-1] / 4)
    outcome = judge_of(toy_question("conversation", demand=demand)).outcome(DESIGNS[0], 10.0, 1)
    assert outcome.requests == 300


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"duration_s": 0.0}, "duration_s is 0; give seconds above 0"),
        ({"duration_s": float("nan")}, "duration_s is nan"),
        ({"warm_up_share": 1.0}, "warm_up_share is 1; leave out 0 or more, but less than 1"),
        ({"warm_up_share": -0.1}, "warm_up_share is -0.1"),
        ({"arrivals": "steps:0=5,60=9"}, "steps have rates of their own"),
        ({"source": "nowhere.csv"}, "source is 'nowhere.csv': no such file"),
    ],
)
def test_a_load_without_sense_is_refused(changes: dict[str, float], words: str) -> None:
    with pytest.raises(PlanningError, match=words):
        replace(Demand("coding"), **changes)  # type: ignore[arg-type]


def test_a_faster_kind_carries_more(tmp_path: Path) -> None:
    question = toy_question(write_load(tmp_path))
    kinds = (SLOW, toy_times(0.0008, 0.035, dollars=1.0, watts=900.0), FAST)
    rates = [
        judge_of(question).most(Design(Family((Offer("kind", kind),), (Pool.MIXED,)), (3,)))
        for kind in kinds
    ]
    assert rates == sorted(set(rates))
