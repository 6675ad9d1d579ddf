"""Machines with a real, tiny engine and real transfers between them, in one process."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from machine_rig import VOCABULARY, Rig, run_until, tiny_folder

from splitwise.engine.model_files import ModelFolder
from splitwise.engine.sampling import SamplingParams
from splitwise.protocol.generation import FinishReason
from splitwise.protocol.messages import (
    Cancel,
    Expect,
    Outputs,
    Preempted,
    PromptsStarted,
    RunPrompt,
    TaskFailed,
    TaskSpec,
    Transferred,
)
from splitwise.scheduling.decision import RunningRequest
from splitwise.scheduling.policies.policy import Hooks, Policy
from splitwise.worker.machine import MachineLimits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def pair(folder: ModelFolder) -> Iterator[tuple[Rig, Rig]]:
    rigs = Rig(folder, "p", blocks=64), Rig(folder, "t", blocks=64)
    yield rigs
    for rig in rigs:
        rig.close()


def spec(task: int, prompt_tokens: int = 20, output_tokens: int = 6, **sampling: float) -> TaskSpec:
    history = [(7 * task + 3 * i) % (VOCABULARY - 1) + 1 for i in range(prompt_tokens)]
    params = SamplingParams(temperature=sampling.pop("temperature", 0.0), **sampling)  # type: ignore[arg-type]
    return TaskSpec(task, history, prompt_tokens, prompt_tokens + output_tokens, params, [])


def alone(folder: ModelFolder, *specs: TaskSpec) -> list[list[int]]:
    """What one mixed machine makes of each."""
    rig = Rig(folder, "alone", blocks=64)
    try:
        for one in specs:
            rig.machine.handle(RunPrompt(one))
            run_until(lambda: rig.is_empty, rig)
        return [rig.tokens(one.task) for one in specs]
    finally:
        rig.close()


def start_split(p: Rig, t: Rig, one: TaskSpec) -> None:
    """As over the wire: each machine has a copy of its own."""
    t.machine.handle(Expect(msgspec.convert(msgspec.to_builtins(one), TaskSpec), "p"))
    p.machine.handle(RunPrompt(msgspec.convert(msgspec.to_builtins(one), TaskSpec), t.addresses))


@pytest.mark.parametrize("prompt_tokens", [1, 7, 8, 16, 17, 100])
def test_split_equals_unsplit(
    folder: ModelFolder, pair: tuple[Rig, Rig], prompt_tokens: int
) -> None:
    p, t = pair
    start_split(p, t, spec(1, prompt_tokens))
    run_until(lambda: t.finish(1) is not None and p.is_empty, p, t)
    assert [p.tokens(1) + t.tokens(1)] == alone(folder, spec(1, prompt_tokens))
    assert len(p.tokens(1)) == 1 and t.finish(1) is FinishReason.LENGTH
    assert t.is_empty
    assert len(t.heard(Transferred)) == 1 and p.heard(PromptsStarted) == [PromptsStarted([1])]


def test_many_at_once_sampled_with_penalties(folder: ModelFolder, pair: tuple[Rig, Rig]) -> None:
    p, t = pair

    def specs() -> list[TaskSpec]:
        return [
            spec(i, 5 + 9 * i, temperature=0.9, seed=i, top_p=0.95, frequency_penalty=0.3)
            for i in range(1, 9)
        ]

    for one in specs():
        start_split(p, t, one)
    run_until(lambda: p.is_empty and t.is_empty, p, t)
    assert [p.tokens(i) + t.tokens(i) for i in range(1, 9)] == alone(folder, *specs())


def test_a_stop_token_ends_on_either_machine(folder: ModelFolder, pair: tuple[Rig, Rig]) -> None:
    p, t = pair
    [tokens] = alone(folder, spec(1))
    first_stop = spec(1)
    first_stop.stop_token_ids = [tokens[0]]
    start_split(p, t, first_stop)
    run_until(lambda: p.finish(1) is FinishReason.STOP, p, t)
    t.machine.handle(Cancel(1))  # As the cluster scheduler does.
    run_until(lambda: p.is_empty and t.is_empty, p, t)
    assert t.tokens(1) == []


def test_cancel_frees_in_every_state(pair: tuple[Rig, Rig]) -> None:
    p, t = pair
    p.machine.handle(RunPrompt(spec(1), t.addresses))
    t.machine.handle(Expect(spec(1), "p"))
    for rig in pair:  # Queued on one, expected on the other.
        rig.machine.handle(Cancel(1))
    run_until(lambda: p.is_empty and t.is_empty, p, t)

    start_split(p, t, spec(2, 100))
    p.turn()  # The first token is out; the cache is leaving.
    assert len(p.tokens(2)) == 1
    for rig in pair:
        rig.machine.handle(Cancel(2))
    run_until(lambda: p.is_empty and t.is_empty, p, t)

    start_split(p, t, spec(3, 20, 400))
    run_until(lambda: len(t.tokens(3)) > 2, p, t)  # Running.
    t.machine.handle(Cancel(3))
    run_until(lambda: p.is_empty and t.is_empty, p, t)
    for rig in pair:
        rig.machine.handle(Cancel(77))  # Unknown: nothing happens.
        assert not rig.heard(TaskFailed)


@pytest.mark.parametrize("tokens", [4, 40])
def test_a_prompt_that_nobody_wants_any_more_is_abandoned_between_layers(
    pair: tuple[Rig, Rig], tokens: int
) -> None:
    """Whether its transfer has begun by then (40) or would after the last layer (4)."""
    p, t = pair
    start_split(p, t, spec(1, tokens))
    p.machine.note_cancel(1)
    p.turn()
    assert p.tokens(1) == []
    p.machine.handle(Cancel(1))
    t.machine.handle(Cancel(1))
    run_until(lambda: p.is_empty and t.is_empty, p, t)


def test_without_memory_the_latest_is_preempted(folder: ModelFolder) -> None:
    rig = Rig(folder, "small", blocks=6)
    try:
        for task in (1, 2):
            rig.machine.handle(RunPrompt(spec(task, 20, 60)))  # 2 blocks now, 5 at the end
        run_until(lambda: rig.is_empty, rig)
        assert rig.heard(Preempted) == [Preempted(2)]
        assert [rig.tokens(1)] == alone(folder, spec(1, 20, 60))
        so_far = rig.tokens(2)
        again = spec(3, 20, 60)
        again.history = [*spec(2, 20, 60).history, *so_far]
        rig.machine.handle(RunPrompt(again))
        run_until(lambda: rig.is_empty, rig)
        assert [so_far + rig.tokens(3)] == alone(folder, spec(2, 20, 60))
    finally:
        rig.close()


def oldest(request: RunningRequest) -> int:
    assert (request.held_tokens, request.priority) == (48, 0)  # three blocks each
    return -request.number


def failing(request: RunningRequest) -> int:
    raise KeyError("no")


@pytest.mark.parametrize(("victim", "task"), [(oldest, 1), (failing, 2), (lambda _: "x", 2)])
def test_a_policy_may_choose_who_is_preempted(
    folder: ModelFolder, victim: Callable[..., Any], task: int, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Policy("mine.py", "mine", Hooks(victim=victim), frozenset({"victim"}))
    rig = Rig(folder, "small", blocks=6, policy=policy)
    try:
        for number in (1, 2):
            one = spec(number, 20, 60)
            one.number = number
            rig.machine.handle(RunPrompt(one))
        run_until(lambda: rig.is_empty, rig)
        assert rig.heard(Preempted) == [Preempted(task)]
        assert rig.finish(3 - task) is FinishReason.LENGTH
    finally:
        rig.close()
    said = [one.message for one in caplog.records if "policy mine.py: victim of" in one.message]
    assert len(said) == (victim is not oldest)


def test_who_was_preempted_before_is_not_so_again_for_a_younger_one(folder: ModelFolder) -> None:
    """It is the oldest request, though the last to come to the machine; else it would be preempted
    for ever where younger ones keep coming."""
    rig = Rig(folder, "small", blocks=6)
    try:
        for task, number in ((1, 8), (2, 3)):
            one = spec(task, 20, 60)
            one.number = number
            rig.machine.handle(RunPrompt(one))
        run_until(lambda: rig.is_empty, rig)
        assert rig.heard(Preempted) == [Preempted(1)]
        assert rig.finish(2) is FinishReason.LENGTH
    finally:
        rig.close()


def test_the_lowest_priority_gives_its_memory_first(folder: ModelFolder) -> None:
    rig = Rig(folder, "small", blocks=6)
    try:
        for task, priority in ((1, 0), (2, -1)):
            one = spec(task, 20, 60)
            one.priority, one.number = priority, task
            rig.machine.handle(RunPrompt(one))
        run_until(lambda: rig.is_empty, rig)
        assert rig.heard(Preempted) == [Preempted(1)]
    finally:
        rig.close()


def test_newcomers_wait_for_blocks(folder: ModelFolder, pair: tuple[Rig, Rig]) -> None:
    p, _ = pair
    small = Rig(folder, "t-small", blocks=8)
    try:
        for task in (1, 2, 3):
            start_split(p, small, spec(task, 60, 5))  # 4 blocks, then 5
        assert small.machine.status().waiting_requests > 0
        run_until(lambda: p.is_empty and small.is_empty, p, small)
        expected = alone(folder, *(spec(task, 60, 5) for task in (1, 2, 3)))
        got = [p.tokens(task) + small.tokens(task) for task in (1, 2, 3)]
        assert got == expected
    finally:
        small.close()


def test_an_engine_that_fails_fails_the_batch_and_goes_on(
    folder: ModelFolder, pair: tuple[Rig, Rig]
) -> None:
    p, t = pair
    bad = spec(1)
    bad.history[3] = VOCABULARY + 5  # What the gateway would never let through.
    start_split(p, t, bad)
    p.turn()
    failures = p.heard(TaskFailed)
    assert len(failures) == 1 and not failures[0].in_transfer  # type: ignore[attr-defined]
    t.machine.handle(Cancel(1))
    run_until(lambda: p.is_empty and t.is_empty, p, t)
    start_split(p, t, spec(2))
    run_until(lambda: t.finish(2) is not None and p.is_empty, p, t)
    assert [p.tokens(2) + t.tokens(2)] == alone(folder, spec(2))


def test_a_prompt_machine_that_dies_fails_what_it_was_to_send(
    folder: ModelFolder, pair: tuple[Rig, Rig]
) -> None:
    _, t = pair
    mortal = Rig(folder, "p", blocks=64)
    start_split(mortal, t, spec(1))
    run_until(lambda: mortal.is_empty and t.is_empty, mortal, t)  # So the link is up.
    t.machine.handle(Expect(spec(2, 10), "p"))
    mortal.sender.begin("2", t.addresses, [0])  # And no layer ever comes.
    mortal.close()
    run_until(lambda: t.is_empty, t)
    [failure] = t.heard(TaskFailed)
    assert failure.task == 2 and failure.in_transfer  # type: ignore[attr-defined]


def outputs_a_turn(rig: Rig, turns: int) -> list[set[int]]:
    """The tasks that had a token in each of the next iterations."""
    heard = []
    for _ in range(turns):
        before = len(rig.said)
        rig.turn()
        outputs = [m for m in rig.said[before:] if isinstance(m, Outputs)]
        heard.append({item.task for message in outputs for item in message.items})
    return heard


def test_prompts_take_the_places_of_a_full_batch(folder: ModelFolder) -> None:
    """And those who gave theirs up are the first to have one again."""
    rig = Rig(folder, "m", 64, MachineLimits(batch_requests=2))
    specs = [spec(1, 8, 9), spec(2, 8, 9), spec(3, 8, 9)]
    rig.machine.handle(RunPrompt(specs[0]))
    rig.machine.handle(RunPrompt(specs[1]))
    assert outputs_a_turn(rig, 2) == [{1, 2}, {1, 2}]
    rig.machine.handle(RunPrompt(specs[2]))
    assert outputs_a_turn(rig, 2) == [{1, 3}, {1, 2}]  # 3 waits for a place of the token phase
    run_until(lambda: rig.is_empty, rig)
    assert [rig.tokens(one) for one in (1, 2, 3)] == alone(
        folder, spec(1, 8, 9), spec(2, 8, 9), spec(3, 8, 9)
    )
    rig.close()


def test_a_decode_is_preempted_at_most_four_times_in_a_row(folder: ModelFolder) -> None:
    rig = Rig(folder, "m", 64, MachineLimits(prompt_batch_tokens=40))
    rig.machine.handle(RunPrompt(spec(1, 8, 9)))
    outputs_a_turn(rig, 2)
    for task in range(2, 8):
        rig.machine.handle(RunPrompt(spec(task, 40, 1)))
    assert outputs_a_turn(rig, 8) == [{2}, {3}, {4}, {5}, {1}, {6}, {7}, {1}]
    rig.close()


def test_a_status_names_the_tasks_that_only_a_transfer_keeps(pair: tuple[Rig, Rig]) -> None:
    """Those that were such at two statuses in a row: most are gone by the next."""
    p, t = pair
    p.machine.handle(RunPrompt(spec(1, 100), t.addresses))  # which nobody expects
    p.turn()
    assert p.tokens(1)
    assert p.machine.status().leaving_blocks == {}
    assert p.machine.status().leaving_blocks == {1: 7}
    p.machine.handle(Cancel(1))
    run_until(lambda: p.is_empty, p)
    status = p.machine.status()
    assert status.leaving_blocks == {} and status.steps == 3 + 1  # layers, and an iteration
