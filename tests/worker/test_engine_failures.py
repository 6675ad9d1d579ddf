"""What becomes of requests whose iteration fails, by whose fault it was."""

from collections.abc import Callable, Iterator, Sequence

import pytest
from machine_rig import Rig, run_until, tiny_folder
from test_machine import alone, spec, start_split

from splitwise.engine.base import Engine, LayerCallback, Work
from splitwise.engine.model_files import ModelFolder
from splitwise.engine.sampling import Sample
from splitwise.protocol.messages import Cancel, RunPrompt, TaskFailed
from splitwise.scheduling import isolation
from splitwise.worker import trial
from splitwise.worker.trial import EngineFailed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "TRIAL_PAUSES_S", (0.0,) * len(isolation.TRIAL_PAUSES_S))


class Failing:
    """Stands before an engine's ``step``: some iterations fail once the cache is written."""

    def __init__(self, engine: Engine, fails: Callable[[Sequence[Work]], bool]) -> None:
        self.fails = fails
        self.batches: list[int] = []
        self._step = engine.step
        engine.step = self.step  # type: ignore[method-assign]

    def step(
        self, work: Sequence[Work], on_layer: LayerCallback | None = None
    ) -> list[Sample | None]:
        self.batches.append(len(work))
        samples = self._step(work, on_layer)
        if self.fails(work):
            raise MemoryError("out of memory")
        return samples


def is_of(task: int) -> Callable[[Work], bool]:
    """Whether the work is that of ``spec(task)``."""
    first = spec(task).history[0]
    return lambda entry: len(entry.history) > 1 and entry.history[0] == first


@pytest.fixture
def rig(folder: ModelFolder) -> Iterator[Rig]:
    rig = Rig(folder, "m", blocks=64)
    yield rig
    rig.close()


def failures(rig: Rig) -> list[tuple[int, bool]]:
    return [(m.task, m.in_company) for m in rig.said if isinstance(m, TaskFailed)]


def test_decodes_survive_a_prompt_that_does_not_fit(folder: ModelFolder, rig: Rig) -> None:
    decodes = [1, 2, 3]
    for task in decodes:
        rig.machine.handle(RunPrompt(spec(task)))
    rig.turn()
    Failing(rig.engine, lambda work: any(len(entry.tokens) > 30 for entry in work))
    rig.machine.handle(RunPrompt(spec(4, 40)))
    run_until(lambda: rig.is_empty, rig)
    assert failures(rig) == [(4, True)]
    assert [rig.tokens(task) for task in decodes] == alone(folder, *map(spec, decodes))


def test_one_decode_that_fails_is_found_and_the_others_go_on(folder: ModelFolder, rig: Rig) -> None:
    tasks = list(range(1, 12))
    for task in tasks:
        rig.machine.handle(RunPrompt(spec(task)))
    rig.turn()
    Failing(rig.engine, lambda work: any(map(is_of(5), work)))
    run_until(lambda: rig.is_empty, rig)
    assert failures(rig) == [(5, False)]
    others = [task for task in tasks if task != 5]
    assert [rig.tokens(task) for task in others] == alone(folder, *map(spec, others))


def test_decodes_that_do_not_fit_together_run_in_parts(folder: ModelFolder, rig: Rig) -> None:
    tasks = [1, 2, 3, 4]
    for task in tasks:
        rig.machine.handle(RunPrompt(spec(task)))
    rig.turn()
    Failing(rig.engine, lambda work: len(work) > 3)
    run_until(lambda: rig.is_empty, rig)
    assert not failures(rig)
    assert [rig.tokens(task) for task in tasks] == alone(folder, *map(spec, tasks))


def test_a_suspect_runs_alone_and_does_not_starve_decodes(rig: Rig) -> None:
    rig.machine.handle(RunPrompt(spec(1, 8, 20)))
    rig.turn()
    rig.turn()
    suspects = [spec(task, 8, 1) for task in range(2, 12)]
    for one in suspects:
        one.alone = True
        rig.machine.handle(RunPrompt(one))
    rig.machine.handle(RunPrompt(spec(12, 8, 1)))
    seen = Failing(rig.engine, lambda work: False)
    run_until(lambda: rig.is_empty, rig)
    assert seen.batches[:13] == [1] * 12 + [2]  # ten suspects, and every fifth time the decode
    assert len(rig.tokens(1)) == 20


def test_a_request_that_fails_alone_is_told_from_a_sick_engine(
    folder: ModelFolder, rig: Rig
) -> None:
    Failing(rig.engine, lambda work: any(map(is_of(1), work)))
    for _ in range(10):  # however often it comes, the machine is well
        rig.machine.handle(RunPrompt(spec(1)))
        rig.turn()
    assert failures(rig) == [(1, False)] * 10
    rig.machine.handle(RunPrompt(spec(2)))
    run_until(lambda: rig.is_empty, rig)
    assert [rig.tokens(2)] == alone(folder, spec(2))


@pytest.mark.parametrize("decodes", [False, True])
def test_an_engine_that_fails_whatever_it_is_given_ends_its_worker(rig: Rig, decodes: bool) -> None:
    for task in (1, 2):
        rig.machine.handle(RunPrompt(spec(task)))
    if decodes:
        rig.turn()
    Failing(rig.engine, lambda work: True)
    with pytest.raises(EngineFailed, match=r"out of memory.*3 trials.*start it again"):
        rig.turn()
    assert failures(rig) == [(1, True), (2, True)]


def test_a_trial_needs_no_free_block(folder: ModelFolder) -> None:
    rig = Rig(folder, "small", blocks=4)
    try:
        for task in (1, 2):
            rig.machine.handle(RunPrompt(spec(task, 20, 6)))
        rig.turn()
        assert rig.machine.status().used_blocks == 4
        Failing(rig.engine, lambda work: len(work) > 1)
        run_until(lambda: rig.is_empty, rig)
        assert not failures(rig) and len(rig.tokens(1)) == 6
    finally:
        rig.close()


def test_a_prompt_that_fails_in_its_transfer_leaves_nothing_behind(folder: ModelFolder) -> None:
    p, t = Rig(folder, "p", blocks=64), Rig(folder, "t", blocks=64)
    try:
        failing = Failing(p.engine, lambda work: len(work[0].tokens) > 1)
        start_split(p, t, spec(1, 100))
        p.turn()
        assert failures(p) == [(1, False)]
        t.machine.handle(Cancel(1))
        run_until(lambda: p.is_empty and t.is_empty, p, t)
        failing.fails = lambda work: False
        start_split(p, t, spec(2, 100))
        run_until(lambda: t.finish(2) is not None and p.is_empty, p, t)
        assert [p.tokens(2) + t.tokens(2)] == alone(folder, spec(2, 100))
    finally:
        p.close()
        t.close()
