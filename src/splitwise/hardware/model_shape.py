"""A model's sizes, from the ``config.json`` that Hugging Face models come with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from splitwise.hardware.errors import HardwareError

DTYPE_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}
TWO_MATRIX_MLP: Final = frozenset(
    {"bloom", "gpt2", "gpt_neox", "gptj", "opt", "falcon", "mpt", "phi", "starcoder2"}
)
"""Models whose feed-forward part has no gate: two matrices instead of three."""


@dataclass(frozen=True)
class ModelShape:
    """What time and memory depend on.

    ``parameters`` are all weights; ``active_parameters`` those that multiply each token;
    ``attention_width`` is query heads times head size.
    """

    layers: int
    hidden: int
    attention_width: int
    parameters: int
    active_parameters: int
    bytes_per_parameter: float
    kv_bytes_per_token: int

    @property
    def weights_bytes(self) -> float:
        """All weights."""
        return self.parameters * self.bytes_per_parameter


def read_model_shape(path: Path) -> ModelShape:
    """The sizes in a config.json, or in the one of that folder; HardwareError if unreadable."""
    file = path / "config.json" if path.is_dir() else path
    try:
        config = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise HardwareError(f"{file}: {error.strerror}; name a model's config.json") from error
    except msgspec.DecodeError as error:
        raise HardwareError(f"{file}: {error}; it must be a JSON object") from error
    try:
        return model_shape(config)
    except HardwareError as error:
        raise HardwareError(f"{file}: {error}") from error


def model_shape(config: Mapping[str, Any]) -> ModelShape:
    """The sizes of a decoder of usual attention, dense or with experts, biases and norms left out.

    Raises:
        HardwareError: a size is missing or senseless, or attention is of the latent kind.
    """
    config = {**config, **(config.get("text_config") or {})}
    if config.get("kv_lora_rank"):
        raise HardwareError("kv_lora_rank: latent attention is not modelled; measure a profile")
    hidden = _size(config, "hidden_size", "n_embed", "n_embd")
    layers = _size(config, "num_hidden_layers", "n_layer")
    heads = _size(config, "num_attention_heads", "n_head")
    kv_heads = _size(config, "num_key_value_heads", default=heads)
    head = _size(config, "head_dim", default=hidden // heads)
    attention = 2 * hidden * head * (heads + kv_heads)
    experts, used = _mlp(config, hidden)
    ends = _size(config, "vocab_size") * hidden
    tied = config.get("tie_word_embeddings", config.get("model_type") == "bloom")
    return ModelShape(
        layers=layers,
        hidden=hidden,
        attention_width=heads * head,
        parameters=layers * (attention + experts) + ends * (1 if tied else 2),
        active_parameters=layers * (attention + used),
        bytes_per_parameter=_bytes_per_parameter(config),
        kv_bytes_per_token=2 * kv_heads * head * layers * 2,
    )


def _mlp(config: Mapping[str, Any], hidden: int) -> tuple[int, int]:
    """Weights of a layer's feed-forward part: all, and those a token meets."""
    matrices = 2 if config.get("model_type") in TWO_MATRIX_MLP else 3
    inner = _size(config, "intermediate_size", "n_inner", default=4 * hidden)
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    count = next((config[name] for name in names if config.get(name)), 0)
    if not count:
        return matrices * hidden * inner, matrices * hidden * inner
    expert = matrices * hidden * _size(config, "moe_intermediate_size", default=inner)
    always = expert * (config.get("n_shared_experts") or 0)
    used = _size(config, "num_experts_per_tok")
    return count * expert + always, used * expert + always


def _size(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or value < 1:
            raise HardwareError(f"{name} is {value!r}; it must be a whole number above 0")
        return value
    if default is None:
        raise HardwareError(f"{' or '.join(names)} is missing; is this a language model's config?")
    return default


def _bytes_per_parameter(config: Mapping[str, Any]) -> float:
    quantization = config.get("quantization_config") or {}
    if quantization:
        bits = 8 if quantization.get("quant_method") == "fp8" else quantization.get("bits")
        if not bits:
            raise HardwareError("quantization_config has no bits; add them, such as 4")
        return float(bits) / 8
    dtype = config.get("dtype") or config.get("torch_dtype") or "float16"
    if dtype not in DTYPE_BYTES:
        raise HardwareError(f"dtype is {dtype!r}; choose from {', '.join(DTYPE_BYTES)}")
    return float(DTYPE_BYTES[dtype])
