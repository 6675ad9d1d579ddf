"""The same answers in this process, on several cores, and on Ray."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from toy_offers import SLOW, toy_question, write_load

from splitwise.planning.design import Design, Family
from splitwise.planning.errors import Infeasible, PlanningError
from splitwise.planning.plan import plan
from splitwise.planning.question import Offer
from splitwise.planning.record import record_of
from splitwise.planning.trial import Judge
from splitwise.planning.workers import Crew, Mapper, here, on_cores, on_ray, open_mapper
from splitwise.scheduling.pool import Pool
from splitwise.simulation.slowdown import parse_slo
from splitwise.workload import WorkloadError


@contextmanager
def in_process() -> Iterator[Mapper]:
    yield here


def on_local_ray() -> AbstractContextManager[Mapper]:
    pytest.importorskip("ray")
    return on_ray("local")


@pytest.fixture(autouse=True)
def workers_find_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's workers import this file by name, as spawned processes do."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


Place = Callable[[], AbstractContextManager[Mapper]]
everywhere = pytest.mark.parametrize(
    "place", [in_process, lambda: on_cores(2), on_local_ray], ids=["here", "cores", "ray"]
)
elsewhere = pytest.mark.parametrize(
    "place", [lambda: on_cores(2), on_local_ray], ids=["cores", "ray"]
)


def most_of(judge: Judge, machines: int) -> tuple[int, float]:
    """The more machines, the longer it takes."""
    design = Design(Family((Offer("slow", SLOW),), (Pool.MIXED,)), (machines,))
    return machines, judge.most(design)


def refuse(judge: Judge, item: int) -> int:
    if item == 2:
        raise PlanningError("item is 2; give another")
    return item


def refuse_load(judge: Judge, item: int) -> int:
    raise WorkloadError("no such load")


@everywhere
def test_answers_come_in_the_order_of_the_items(tmp_path: Path, place: Place) -> None:
    question = toy_question(write_load(tmp_path))
    counts = [6, 1, 5, 2, 1]
    expected = Crew(here, None).map("order", question, most_of, counts)
    told: list[tuple[str, int, int]] = []
    with place() as mapper:
        crew = Crew(mapper, None, lambda *progress: told.append(progress))
        answers = crew.map("order", question, most_of, counts)
        none = crew.map("nothing", question, most_of, [])
    assert answers == expected
    assert [machines for machines, _ in answers] == counts
    assert none == []
    assert told == [*(("order", done, 5) for done in range(6)), ("nothing", 0, 0)]


@elsewhere
def test_a_plan_is_the_same_elsewhere(tmp_path: Path, place: Place) -> None:
    question = toy_question(write_load(tmp_path))
    expected = plan(question, Crew(here, None))
    with place() as mapper:
        found = plan(question, Crew(mapper, tmp_path / "known.sqlite"))
    assert record_of(found, ("", "")) == record_of(expected, ("", ""))


@everywhere
@pytest.mark.parametrize(
    ("task", "error", "words"),
    [
        (refuse, PlanningError, "item is 2; give another"),
        (refuse_load, WorkloadError, "no such load"),
    ],
)
def test_an_error_reaches_the_caller_as_itself(
    tmp_path: Path,
    place: Place,
    task: Callable[[Judge, int], int],
    error: type[Exception],
    words: str,
) -> None:
    with place() as mapper, pytest.raises(error) as caught:
        Crew(mapper, None).map("errors", toy_question(write_load(tmp_path)), task, [1, 2, 3])
    assert type(caught.value) is error
    assert str(caught.value) == words


@everywhere
def test_a_question_without_an_answer_is_refused(tmp_path: Path, place: Place) -> None:
    question = toy_question(write_load(tmp_path), slos=(parse_slo("ttft:p50<=1ms"),))
    with place() as mapper, pytest.raises(Infeasible, match="to itself reaches"):
        plan(question, Crew(mapper, None))


def test_one_core_needs_no_processes() -> None:
    with open_mapper(1, None) as mapper:
        assert mapper is here


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as Python marks what it is not to find
    with (
        pytest.raises(PlanningError, match=r"pip install 'splitwise-llm\[ray\]'"),
        open_mapper(4, "local"),
    ):
        pass


def test_a_ray_that_does_not_run_is_named() -> None:
    pytest.importorskip("ray")
    with pytest.raises(PlanningError, match="ray is 'auto': "), on_ray("auto"):
        pass
