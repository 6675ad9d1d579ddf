import os

# Before torch and numba start: one thread, as a worker has by default.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch
from tiny_models import save_tiny_model

from splitwise.engine.model_files import ModelFolder, resolve_model


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def default_model() -> ModelFolder:
    """The real default model, from the user's own cache (converted there on first use)."""
    return resolve_model(None)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory):
    """``tiny_model(kind)``: the folder of a tiny random model, made once a session."""
    made: dict[str, ModelFolder] = {}

    def make(kind: str) -> ModelFolder:
        if kind not in made:
            path: Path = tmp_path_factory.mktemp(kind)
            save_tiny_model(kind, path)
            made[kind] = ModelFolder(path, kind)
        return made[kind]

    return make
