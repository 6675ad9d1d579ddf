"""Prompts of the same tokens, as those of ``n`` answers, are computed once; each has its own draw,
its own blocks and its own transfer."""

from collections.abc import Iterator

import msgspec
import pytest
from machine_rig import VOCABULARY, Rig, run_until, tiny_folder

from splitwise.engine.model_files import ModelFolder
from splitwise.engine.sampling import SamplingParams
from splitwise.engine.torch.batch import Batch
from splitwise.protocol.messages import Cancel, Expect, PromptsStarted, RunPrompt, TaskSpec
from splitwise.worker.machine import MachineLimits
from splitwise.worker.task import Task, TaskState, alike


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def pair(folder: ModelFolder) -> Iterator[tuple[Rig, Rig]]:
    limits = MachineLimits(one_piece_below_tokens=8, prompt_batch_tokens=60)
    rigs = Rig(folder, "p", 128, limits), Rig(folder, "t", 128, limits)
    yield rigs
    for rig in rigs:
        rig.close()


def spec(task: int, prompt_tokens: int, first: int = 3, **sampling: float) -> TaskSpec:
    """Tasks of one length and first token have one prompt; each has its own seed."""
    history = [(first + 5 * i) % (VOCABULARY - 1) + 1 for i in range(prompt_tokens)]
    params = SamplingParams(seed=task, temperature=1.0, logprobs=2, **sampling)  # type: ignore[arg-type]
    return TaskSpec(task, history, prompt_tokens, prompt_tokens + 6, params, [])


def alone(folder: ModelFolder, one: TaskSpec) -> list[int]:
    """What a machine makes of it that runs nothing else."""
    rig = Rig(folder, "alone", blocks=64)
    try:
        rig.machine.handle(RunPrompt(one))
        run_until(lambda: rig.is_empty, rig)
        return rig.tokens(one.task)
    finally:
        rig.close()


def rows_computed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens that go through the model, an entry an iteration."""
    rows: list[int] = []
    run = rig.engine._run

    def watched(batch: Batch) -> object:
        rows.append(batch.tokens.shape[1])
        return run(batch)

    monkeypatch.setattr(rig.engine, "_run", watched)
    return rows


@pytest.mark.parametrize("prompt_tokens", [1, 5, 16, 40])
@pytest.mark.parametrize("split", [True, False])
def test_they_are_computed_once_and_answered_as_if_alone(
    folder: ModelFolder,
    pair: tuple[Rig, Rig],
    prompt_tokens: int,
    split: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    p, t = pair
    specs = [spec(task, prompt_tokens) for task in range(1, 8)]
    specs.insert(3, spec(8, 20, first=11))  # another prompt among them
    specs.insert(6, spec(9, prompt_tokens, repetition_penalty=1.5))
    rows = rows_computed(p, monkeypatch)
    for one in specs:
        copy = msgspec.convert(msgspec.to_builtins(one), TaskSpec)
        if split:
            t.machine.handle(Expect(msgspec.convert(msgspec.to_builtins(one), TaskSpec), "p"))
        p.machine.handle(RunPrompt(copy, t.addresses if split else None))
    last = t if split else p
    run_until(
        lambda: all(last.finish(one.task) for one in specs) and p.is_empty and t.is_empty, p, t
    )
    # 60 tokens a batch hold the prompt and the other one, and what is like either is free.
    assert rows[0] == prompt_tokens + 20
    assert p.heard(PromptsStarted) == [PromptsStarted([one.task for one in specs])]
    answers = [p.tokens(one.task) + t.tokens(one.task) for one in specs]
    assert answers == [alone(folder, spec_of(one)) for one in specs]
    assert len({tuple(answer) for answer in answers}) > 5


def spec_of(one: TaskSpec) -> TaskSpec:
    """As it was before a machine took it."""
    return msgspec.structs.replace(one, history=one.history[: one.prompt_tokens])


def test_the_first_may_be_cancelled_before_it_runs(
    folder: ModelFolder, pair: tuple[Rig, Rig]
) -> None:
    p, _ = pair
    for task in (1, 2, 3):
        p.machine.handle(RunPrompt(spec(task, 40)))
    p.machine.handle(Cancel(1))
    run_until(lambda: p.is_empty, p)
    assert p.tokens(1) == []
    for task in (2, 3):
        assert p.tokens(task) == alone(folder, spec(task, 40))


def test_what_only_seems_alike_is_not() -> None:
    """Prompts of one hash, by chance, are compared."""
    tasks = [
        Task(TaskSpec(task, [task, 5], 2, 9, SamplingParams(), []), TaskState.QUEUED, task)
        for task in (1, 2, 1, 2)
    ]
    assert alike(tasks) == [None, None, 0, 1]
    for task in tasks:
        task.__dict__["prompt_key"] = 7
    assert alike(tasks) == [None, None, 0, None]
