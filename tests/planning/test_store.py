"""What is known is not simulated again, and what has changed is."""

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from toy_offers import FAST, SLOW, judge_of, toy_question, write_load

from splitwise.planning.design import Design, Family
from splitwise.planning.errors import PlanningError
from splitwise.planning.outcome import Outcome, Percentiles
from splitwise.planning.plan import plan
from splitwise.planning.question import Limits, Objective, Offer, Question
from splitwise.planning.store import OutcomeStore
from splitwise.planning.workers import Crew, here
from splitwise.scheduling.pool import Pool
from splitwise.simulation.simulate import Options
from splitwise.simulation.slowdown import Slo

RATE_PER_S = 5.0
OUTCOME = Outcome(
    (), *[Percentiles(1.0, 2.0, 3.0)] * 3, requests=1, joules_per_token=1.0, watts=1.0
)
WRITES = 50


def simulated(store: OutcomeStore, question: Question, rate_per_s: float = RATE_PER_S) -> int:
    """How many simulations one cluster's outcomes take."""
    fast, slow = question.offers
    judge = judge_of(question, store)
    judge.outcomes(Design(Family((fast, slow), (Pool.PROMPT, Pool.TOKEN)), (2, 2)), rate_per_s)
    assert judge.simulated + judge.known == len(question.seeds)
    return judge.simulated


def with_times(question: Question, **changes: float) -> Question:
    """The first kind on offer is another."""
    fast, slow = question.offers
    return replace(question, offers=(Offer("fast", replace(fast.times, **changes)), slow))


@pytest.mark.parametrize(
    "change",
    [
        lambda question: question,
        lambda question: with_times(question, dollars_per_hour=9.0),
        lambda question: with_times(question, provisioned_watts=9.0),
        lambda question: replace(question, limits=Limits(machines=7)),
        lambda question: replace(question, objective=Objective.POWER),
        lambda question: replace(question, resolution_per_s=0.5),
        lambda question: replace(question, offers=(Offer("h900", FAST, 9), Offer("a1", SLOW, 9))),
    ],
    ids=["nothing", "price", "power", "limit", "objective", "resolution", "names and stock"],
)
def test_what_an_outcome_does_not_depend_on_simulates_nothing(
    tmp_path: Path, change: Callable[[Question], Question]
) -> None:
    question = toy_question(write_load(tmp_path))
    with OutcomeStore(tmp_path / "known.sqlite") as store:
        assert simulated(store, question) == 2
    with OutcomeStore(tmp_path / "known.sqlite") as store:
        assert simulated(store, change(question)) == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda question: replace(question, slos=(Slo("ttft", 90, 3.5), *question.slos[1:])),
        lambda question: replace(question, slos=question.slos[1:]),
        lambda question: replace(question, seeds=(3, 4)),
        lambda question: with_times(question, decode_s=FAST.decode_s * 1.01),
        lambda question: with_times(question, prompt_s=FAST.prompt_s + 1e-4),
        lambda question: with_times(question, idle_watts=171.0),
        lambda question: with_times(question, kv_capacity_tokens=19_999),
        lambda question: with_times(question, link_latency_s=1e-3),
        lambda question: replace(question, reference=FAST),
        lambda question: replace(question, options=Options(queue_threshold_tokens=4096)),
        lambda question: replace(question, options=Options(overlap=False)),
        lambda question: replace(question, demand=replace(question.demand, duration_s=61.0)),
        lambda question: replace(question, demand=replace(question.demand, warm_up_share=0.2)),
        lambda question: replace(question, demand=replace(question.demand, arrivals="gamma:2")),
    ],
)
def test_what_an_outcome_depends_on_is_simulated(
    tmp_path: Path, change: Callable[[Question], Question]
) -> None:
    question = toy_question(write_load(tmp_path))
    with OutcomeStore(None) as store:
        assert simulated(store, question) == 2
        assert simulated(store, change(question)) == 2
        assert simulated(store, question) == 0


def test_another_rate_is_simulated(tmp_path: Path) -> None:
    question = toy_question(write_load(tmp_path))
    with OutcomeStore(None) as store:
        assert simulated(store, question, 5.0) == 2
        assert simulated(store, question, 5.0 + 1e-9) == 2


def test_one_more_seed_simulates_that_seed(tmp_path: Path) -> None:
    question = toy_question(write_load(tmp_path))
    with OutcomeStore(None) as store:
        simulated(store, question)
        assert simulated(store, replace(question, seeds=(1, 2, 3))) == 1


def test_other_content_of_the_same_file_is_simulated(tmp_path: Path) -> None:
    question = toy_question(write_load(tmp_path))
    with OutcomeStore(None) as store:
        assert simulated(store, question) == 2
        write_load(tmp_path, seed=1)
        assert simulated(store, question) == 2
        write_load(tmp_path, seed=0)
        assert simulated(store, question) == 0


def _write(path: Path, first: int) -> None:
    for number in range(first, first + WRITES):
        with OutcomeStore(path) as store:
            store.put(number.to_bytes(4), OUTCOME)


def test_two_processes_write_one_file(tmp_path: Path) -> None:
    """Each opens it again and again, as workers do, the first time before there is a file."""
    path = tmp_path / "new" / "known.sqlite"
    context = get_context("spawn")
    writers = [context.Process(target=_write, args=(path, first)) for first in (0, WRITES)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=60)
        assert writer.exitcode == 0
    with OutcomeStore(path) as store:
        assert all(store.get(number.to_bytes(4)) == OUTCOME for number in range(2 * WRITES))


def test_what_another_simulator_said_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "known.sqlite"
    with OutcomeStore(path) as store:
        store.put(b"ours", OUTCOME)
        store.put(b"theirs", OUTCOME)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE outcomes SET source = 'older' WHERE key = ?", (b"theirs",))
    with OutcomeStore(path) as store:
        assert store.get(b"ours") == OUTCOME
        assert store.get(b"theirs") is None
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM outcomes").fetchone() == (1,)


def test_infinite_values_are_kept(tmp_path: Path) -> None:
    endless = replace_joules(OUTCOME, np.inf)
    with OutcomeStore(tmp_path / "known.sqlite") as store:
        store.put(b"key", endless)
        assert store.get(b"key") == endless


def replace_joules(outcome: Outcome, joules: float) -> Outcome:
    return Outcome(
        *(outcome.slos, outcome.ttft_s, outcome.tbt_s, outcome.e2e_s),
        *(outcome.requests, joules, outcome.watts),
    )


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_text("not a database" * 99)])
def test_a_file_that_is_no_store_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "known.sqlite")
    with pytest.raises(PlanningError, match=r"cache .*known.sqlite.*another file"):
        OutcomeStore(tmp_path / "known.sqlite")


class _Stopped(Exception):
    pass


def test_interrupted_work_goes_on_where_it_stopped(tmp_path: Path) -> None:
    question = toy_question(write_load(tmp_path))
    path = tmp_path / "known.sqlite"

    def stop_halfway(what: str, done: int, total: int) -> None:
        if what == "clusters" and done == total // 2:
            raise _Stopped

    with pytest.raises(_Stopped):
        plan(question, Crew(here, path, stop_halfway), what_if=False)
    resumed = plan(question, Crew(here, path), what_if=False)
    whole = plan(question, Crew(here, None), what_if=False)
    again = plan(question, Crew(here, path), what_if=False)
    assert 0 < resumed.simulated < whole.simulated
    assert again.simulated == 0
    for other in (resumed, again):
        assert other.best.design.name == whole.best.design.name
        assert other.most == whole.most
