"""Tiny randomly initialised decoders, each with something of its own for the engine to get wrong.

Weights are larger than usual so that logits lie well apart and greedy choices are no coin tosses.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 97

_SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
}

# kind -> (transformers' model type, settings)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama-tied-biased": (
        "llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama-one-kv-head": ("llama", {"num_attention_heads": 6, "num_key_value_heads": 1}),
    "llama-odd-head-dim": ("llama", {"head_dim": 20, "num_attention_heads": 6}),
    "qwen2": ("qwen2", {"num_attention_heads": 6, "num_key_value_heads": 3}),
    "qwen3": ("qwen3", {"head_dim": 32}),  # a norm on each head; heads wider than the hidden size
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 24}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1], "use_sliding_window": False}),
    "gemma": ("gemma", {"head_dim": 16, "hidden_activation": "gelu_pytorch_tanh"}),  # 1 + weight
    "granite": ("granite", {"logits_scaling": 3.0, "residual_multiplier": 0.5}),
    "phi3": ("phi3", {}),  # query, key and value in one weight of its own
    "gpt_neox": ("gpt_neox", {"num_key_value_heads": None}),  # LayerNorm, partial rotation
    "opt": ("opt", {"num_key_value_heads": None, "ffn_dim": 80, "word_embed_proj_dim": 48}),
}


def tiny_config(model_type: str, settings: dict[str, Any]) -> PreTrainedConfig:
    values = {k: v for k, v in (_SHARED | settings).items() if v is not None or k in settings}
    return CONFIG_MAPPING[model_type](**{k: v for k, v in values.items() if v is not None})


def save_tiny_model(kind: str, folder: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(*KINDS[kind]))
    for name, parameter in model.named_parameters():
        if "norm" in name:  # else all ones, and a norm that drops its weight would go unnoticed
            torch.nn.init.uniform_(parameter, 0.6, 1.4)
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
