"""What the tests of all rooms share."""

from importlib.util import find_spec

import pytest

from splitwise.engine.model_files import ModelFolder, resolve_model


@pytest.fixture(scope="session")
def model_folder() -> ModelFolder:
    """The default model."""
    return resolve_model(None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if find_spec("vllm") is not None:
        return
    for item in items:
        if item.get_closest_marker("vllm") is not None:
            item.add_marker(pytest.mark.skip(reason="needs vLLM: run make check-vllm"))
