"""An engine that is made to fail from outside, for tests and for trying a cluster to breaking.

Where the environment of a worker has ``SPLITWISE_FAULTS=FOLDER``, its engine looks before each
iteration for the file ``FOLDER/MACHINE_ID``. While that is there, what it says happens:

- ``step``: the iteration fails, as after a CUDA error that stays until the process ends;
- ``prompt``: an iteration with a prompt in it fails, as where memory is short;
- ``hang``: the iteration does not go on until the file is gone.

The file outlives the worker: one that is started again fails again until the file is removed.
vLLM composes its steps itself: there ``step`` and ``hang`` happen, ``prompt`` does not.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from splitwise.engine.base import Engine, LayerCallback, Work
from splitwise.engine.sampling import Sample

FAULTS_VARIABLE: Final = "SPLITWISE_FAULTS"
_LOOK_S: Final = 0.01


class InjectedFault(Exception):
    """What a failing iteration raises."""


class Switch:
    """The file of one machine."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def strike(self, has_prompt: bool) -> None:
        """An iteration begins: what the file says happens.

        Raises:
            InjectedFault: the iteration is to fail.
        """
        while (fault := self._fault()) == "hang":
            time.sleep(_LOOK_S)
        if fault == "step" or (fault == "prompt" and has_prompt):
            raise InjectedFault(f"{self._file} says {fault}")

    def _fault(self) -> str:
        try:
            return self._file.read_text().strip()
        except FileNotFoundError:
            return ""


class FaultyEngine(Engine):
    """``engine`` until ``switch`` strikes."""

    def __init__(self, engine: Engine, switch: Switch) -> None:
        self.model = engine.model
        self.layout = engine.layout
        self.memory = engine.memory
        self._engine = engine
        self._switch = switch

    def step(
        self, work: Sequence[Work], on_layer: LayerCallback | None = None
    ) -> list[Sample | None]:
        self._switch.strike(any(entry.start == 0 for entry in work))
        return self._engine.step(work, on_layer)

    def synchronise(self) -> None:
        self._engine.synchronise()

    def close(self) -> None:
        self._engine.close()


def switch_of(machine_id: str) -> Switch | None:
    """The machine's, where the environment asks for faults."""
    folder = os.environ.get(FAULTS_VARIABLE)
    return Switch(Path(folder) / machine_id) if folder else None


def with_faults(engine: Engine, machine_id: str) -> Engine:
    """The engine as it is, unless the environment asks for faults."""
    switch = switch_of(machine_id)
    return engine if switch is None else FaultyEngine(engine, switch)
