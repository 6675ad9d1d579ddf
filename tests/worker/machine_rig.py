"""A machine with a real, tiny engine, driven step by step in this process."""

import time
from collections.abc import Callable
from pathlib import Path

import tiny_models
from engine_rig import EngineRig

from splitwise.engine.model_files import ModelFolder
from splitwise.engine.torch.engine import TorchEngine
from splitwise.scheduling.policies.policy import DEFAULT, Policy
from splitwise.worker.machine import MachineLimits

VOCABULARY = tiny_models.VOCABULARY
WAIT_S = 20.0
LIMITS = MachineLimits(one_piece_below_tokens=8)


def tiny_folder(path: Path) -> ModelFolder:
    """A model of random weights."""
    tiny_models.save_tiny_model("llama", path)
    return ModelFolder(path, "tiny")


class Rig(EngineRig):
    """A machine with a cache of so many blocks for a tiny model."""

    def __init__(
        self,
        folder: ModelFolder,
        name: str,
        blocks: int,
        limits: MachineLimits = LIMITS,
        policy: Policy = DEFAULT,
    ) -> None:
        block_bytes = 3 * 2 * 16 * 2 * 12 * 4  # layers, K and V, tokens, KV heads, dims, float32
        super().__init__(TorchEngine(folder, blocks * block_bytes), name, limits, policy)


def run_until(done: Callable[[], bool], *rigs: Rig) -> None:
    deadline = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline, [rig.said for rig in rigs]
        for rig in rigs:
            rig.turn()
