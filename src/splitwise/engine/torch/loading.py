"""Loads a transformers model for the engine, or says why it cannot be served."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from splitwise.engine.errors import ModelError
from splitwise.engine.model_files import ModelFolder
from splitwise.engine.torch import attention
from splitwise.engine.torch.linear import pack_linears


def load_model(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> Any:
    """The model in evaluation mode on ``device``, with our attention in the place of its own.

    Raises:
        ModelError: its architecture does not work with a paged cache.
    """
    config = AutoConfig.from_pretrained(folder.path)
    model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if model_class is None or not model_class._supports_attention_backend:
        raise ModelError(
            f"model {folder.name!r}: transformers' code for {config.model_type!r} does not use its "
            "attention interface; choose another architecture (Llama, Qwen, Mistral, Phi, ...)"
        )
    network = AutoModelForCausalLM.from_pretrained(
        folder.path, dtype=dtype, attn_implementation=attention.NAME
    )
    network.eval().requires_grad_(False)
    if device.type == "cpu" and dtype == torch.float32:
        pack_linears(network)
    return network.to(device)
