"""Real servers with the default model, and the same model in transformers to compare with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from splitwise.engine.model_files import ModelFolder
from splitwise.launch.local_server import running_server

ENGLISH = (Path(__file__).parents[2] / "LICENSE").read_text()


@pytest.fixture(scope="session")
def reference(model_folder: ModelFolder) -> PreTrainedModel:
    """Never ends a text by itself, as with ``ignore_eos``."""
    model = AutoModelForCausalLM.from_pretrained(model_folder.path, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="session")
def english_tokens(model_folder: ModelFolder) -> list[int]:
    """A few thousand tokens of plain English."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder.path)
    return list(tokenizer(ENGLISH)["input_ids"])


@pytest.fixture(scope="session")
def split_server() -> Iterator[str]:
    """One prompt and one token machine over shared memory; every length goes layer by layer."""
    with running_server("--transport=shared_memory", "--one-piece-below=0", "--checksum") as url:
        yield url
