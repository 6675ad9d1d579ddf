"""An engine that is made to fail from outside, for tests and for trying a cluster to breaking.

Where the environment of a worker has ``SPLITWISE_FAULTS=FOLDER``, its engine looks before each
iteration for the file ``FOLDER/MACHINE_ID``. While that is there, what it says happens:

- ``step``: the iteration fails, as after a CUDA error that stays until the process ends;
- ``prompt``: an iteration with a prompt in it fails, as where memory is short;
- ``hang``: the iteration does not go on until the file is gone.

The file outlives the worker: one that is started again fails again until the file is removed.
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


class FaultyEngine(Engine):
    """``engine`` until the file ``switch`` is there."""

    def __init__(self, engine: Engine, switch: Path) -> None:
        self.model = engine.model
        self.layout = engine.layout
        self.memory = engine.memory
        self._engine = engine
        self._switch = switch

    def step(
        self, work: Sequence[Work], on_layer: LayerCallback | None = None
    ) -> list[Sample | None]:
        while (fault := self._fault()) == "hang":
            time.sleep(_LOOK_S)
        has_prompt = any(entry.start == 0 for entry in work)
        if fault == "step" or (fault == "prompt" and has_prompt):
            raise InjectedFault(f"{self._switch} says {fault}")
        return self._engine.step(work, on_layer)

    def synchronise(self) -> None:
        self._engine.synchronise()

    def close(self) -> None:
        self._engine.close()

    def _fault(self) -> str:
        try:
            return self._switch.read_text().strip()
        except FileNotFoundError:
            return ""


def with_faults(engine: Engine, machine_id: str) -> Engine:
    """The engine as it is, unless the environment asks for faults."""
    folder = os.environ.get(FAULTS_VARIABLE)
    return FaultyEngine(engine, Path(folder) / machine_id) if folder else engine
