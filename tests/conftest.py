"""What the tests of all rooms share."""

import pytest

from splitwise.engine.model_files import ModelFolder, resolve_model


@pytest.fixture(scope="session")
def model_folder() -> ModelFolder:
    """The default model."""
    return resolve_model(None)
