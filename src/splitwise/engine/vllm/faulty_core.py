"""vLLM, made to fail from outside (``engine.faulty``)."""

from typing import TYPE_CHECKING

from splitwise.engine.faulty import Switch
from splitwise.engine.model_files import ModelFolder
from splitwise.engine.vllm.core import VllmCore
from splitwise.engine.vllm.settings import VllmSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm.v1.engine import EngineCoreOutput


class FaultyCore(VllmCore):
    """A core until ``switch`` strikes."""

    def __init__(self, folder: ModelFolder, settings: VllmSettings, switch: Switch) -> None:
        super().__init__(folder, settings)
        self._switch = switch

    def step(self) -> "tuple[Sequence[EngineCoreOutput], bool]":
        self._switch.strike(has_prompt=False)
        return super().step()
