"""Blocks of an iteration that did not end well come back only when the device has passed it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from machine_rig import LIMITS, Rig, run_until, tiny_folder

from splitwise.engine.base import Engine, LayerCallback, Work
from splitwise.engine.blocks import BlockPool
from splitwise.engine.sampling import Sample, SamplingParams
from splitwise.protocol.messages import Cancel, RunPrompt, TaskFailed, TaskSpec
from splitwise.worker.machine import Machine


class LateEngine(Engine):
    """Like a GPU: what ``step`` has queued is under way until it ends well, or is waited for."""

    def __init__(self, engine: Engine, log: list[str]) -> None:
        self.model, self.layout, self.memory = engine.model, engine.layout, engine.memory
        self._engine = engine
        self._log = log
        self.fails_at_layer: int | None = None
        """Once."""

    def step(
        self, work: Sequence[Work], on_layer: LayerCallback | None = None
    ) -> list[Sample | None]:
        self._log.append("queued")

        def layer_done(layer: int) -> None:
            if layer == self.fails_at_layer:
                self.fails_at_layer = None
                raise RuntimeError("CUDA out of memory")
            if on_layer is not None:
                on_layer(layer)

        samples = self._engine.step(work, layer_done)
        self._log.append("passed")
        return samples

    def synchronise(self) -> None:
        self._log.append("passed")

    def close(self) -> None:
        self._engine.close()


@pytest.fixture
def log() -> list[str]:
    return []


@dataclass
class Late:
    """A machine over such an engine; ``log`` has the order of things."""

    rig: Rig
    engine: LateEngine
    log: list[str]

    def assert_freed_at_rest(self) -> None:
        under_way = False
        for entry in self.log:
            under_way = entry == "queued" or (under_way and entry != "passed")
            assert not (under_way and entry == "freed"), self.log
        assert "freed" in self.log

    def turn_until_empty(self) -> None:
        run_until(lambda: self.rig.is_empty, self.rig)

    def run_prompt(self, sends: bool = False) -> None:
        spec = TaskSpec(1, [7] * 20, 20, 28, SamplingParams(temperature=0), [])
        self.rig.inbox.put(RunPrompt(spec, self.rig.addresses if sends else None))


@pytest.fixture
def late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Late]:
    rig, log = Rig(tiny_folder(tmp_path), "machine", 8), list[str]()
    engine = LateEngine(rig.engine, log)
    rig.machine = Machine(engine, rig.sender, rig.receiver, rig.said.append, LIMITS)
    free = BlockPool.free

    def logged(pool: BlockPool, blocks: list[int]) -> None:
        log.append("freed")
        free(pool, blocks)

    monkeypatch.setattr(BlockPool, "free", logged)
    yield Late(rig, engine, log)
    rig.close()


@pytest.mark.parametrize("sends", [False, True])
def test_a_prompt_that_is_given_up_half_way(late: Late, sends: bool) -> None:
    late.run_prompt(sends)
    late.rig.machine.note_cancel(1)  # its Cancel is still in the inbox
    late.rig.turn()
    late.turn_until_empty()
    late.assert_freed_at_rest()


@pytest.mark.parametrize("sends", [False, True])
def test_a_prompt_that_fails(late: Late, sends: bool) -> None:
    late.run_prompt(sends)
    late.engine.fails_at_layer = 1
    late.rig.turn()
    assert late.rig.heard(TaskFailed)
    late.turn_until_empty()
    late.assert_freed_at_rest()


def test_a_decode_that_fails(late: Late) -> None:
    late.run_prompt()
    late.rig.turn()
    late.engine.fails_at_layer = 2
    late.rig.turn()
    assert late.rig.heard(TaskFailed)
    late.assert_freed_at_rest()


def test_a_request_that_is_cancelled_between_iterations(late: Late) -> None:
    late.run_prompt()
    late.rig.turn()
    late.rig.inbox.put(Cancel(1))
    late.rig.turn()
    late.turn_until_empty()
    late.assert_freed_at_rest()
