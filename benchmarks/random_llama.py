"""A Llama of 8B size without weights, for measuring GPUs where no checkpoint is at hand."""

import shutil
from pathlib import Path
from typing import Final

from transformers import LlamaConfig

from splitwise.engine.model_files import resolve_model

FOLDER: Final = Path(__file__).with_name("llama_8b")
LLAMA_8B = LlamaConfig.from_pretrained(FOLDER)


def save_folder(folder: Path) -> Path:
    """A folder for ``splitwise serve --load-format dummy``: config, and the default tokenizer."""
    for file in (*FOLDER.glob("*.json"), *resolve_model(None).path.glob("*token*")):
        shutil.copy(file, folder)
    return folder
