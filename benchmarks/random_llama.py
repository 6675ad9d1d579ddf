"""A Llama of 8B size without weights, for measuring GPUs where no checkpoint is at hand."""

import shutil
from pathlib import Path

from transformers import LlamaConfig

from splitwise.engine.model_files import resolve_model

LLAMA_8B = LlamaConfig(
    architectures=["LlamaForCausalLM"],
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
)


def save_folder(folder: Path) -> Path:
    """A folder for ``splitwise serve --load-format dummy``: config, and the default tokenizer."""
    LLAMA_8B.save_pretrained(folder)
    for file in resolve_model(None).path.glob("*token*"):
        shutil.copy(file, folder)
    return folder
