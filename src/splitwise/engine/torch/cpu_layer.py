"""A whole Llama-like decoder layer for one token, in three compiled calls.

A single request decoding on a CPU reads all weights for one row. That takes 13 ms for 135 million
of them, and the 30 Python and torch calls a layer, made with caches that the weights have just
swept, another 4. So where a layer has the usual shape its single rows go this way:
1. norm, query, key, value and their rotation (``row_to_qkv``);
2. the cache and attention, as for any other row (``attend``);
3. output product, residual, norm, MLP, residual (``row_after_attention``).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from splitwise.engine.torch.attention import attend
from splitwise.engine.torch.batch import Batch
from splitwise.engine.torch.cpu_kernels import row_after_attention, row_to_qkv
from splitwise.engine.torch.cpu_modules import (
    CompiledRMSNorm,
    FusedAttention,
    GatedMLP,
    PackedLinear,
    probe_rows,
)

_NO_BIAS = np.empty(0, np.float32)
_PARTS = {
    "self_attn": FusedAttention,
    "mlp": GatedMLP,
    "input_layernorm": CompiledRMSNorm,
    "post_attention_layernorm": CompiledRMSNorm,
}


class RowLayer:
    """Runs single rows through a layer whose modules are those of ``cpu_modules``."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._layer = attention.layer
        self._scale = attention.scale
        self._query_heads, self._kv_heads = attention.query_heads, attention.kv_heads
        self._shape = (self._query_heads + 2 * self._kv_heads, attention.head_dim)
        before, after = layer.input_layernorm, layer.post_attention_layernorm
        self._before = (before.weight, before.epsilon, *_weights(attention.qkv))
        self._after = (
            *_weights(attention.out),
            after.weight,
            after.epsilon,
            *_weights(mlp.gate_up),
            *_weights(mlp.down),
        )

    def forward(
        self, row: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], batch: Batch
    ) -> torch.Tensor:
        """``row`` and the result are ``[1, 1, width]``; ``angles`` are cosines and sines."""
        keys_from, values_from = self._query_heads, self._query_heads + self._kv_heads
        numbers = row[0].numpy()
        qkv = torch.empty(self._shape)
        cos, sin = angles
        row_to_qkv(numbers, *self._before, values_from, cos[0].numpy(), sin[0].numpy(), qkv.numpy())
        query, key, value = qkv[None].tensor_split((keys_from, values_from), dim=1)
        attended = attend(batch, self._layer, query, key, value, self._scale)
        out = torch.empty_like(row)
        row_after_attention(numbers, attended.view(1, -1).numpy(), *self._after, out[0].numpy())
        return out


def speed_up_rows(network: Any, probe: Batch) -> None:
    """Let single rows take the short way through every layer that has the shape and agrees.

    ``probe`` is a decode of one token to try it with.
    """
    for layer in network.modules():
        if not _has_the_shape(layer):
            continue
        row = probe_rows(probe, len(layer.input_layernorm.weight))
        angles = network.base_model.rotary_emb(row, probe.positions)
        fast, usual = RowLayer(layer), layer.forward
        expected = usual(row, position_embeddings=angles, batch=probe)
        error = (fast.forward(row, angles, probe) - expected).norm()
        if error <= 1e-4 * expected.norm():
            # On the instance: the model may look for other attributes of its layers.
            layer.forward = _choice(fast, usual)


def _choice(fast: RowLayer, usual: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def forward(hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        if hidden_states.shape[1] > 1:
            return usual(hidden_states, **arguments)
        return fast.forward(hidden_states, arguments["position_embeddings"], arguments["batch"])

    return forward


def _has_the_shape(layer: Any) -> bool:
    if {name: type(child) for name, child in layer.named_children()} != _PARTS:
        return False
    if layer.self_attn.q_norm is not None or layer.self_attn.k_norm is not None:
        return False
    return all(m.plain is not None for m in layer.modules() if isinstance(m, PackedLinear))


def _weights(linear: PackedLinear) -> tuple[Any, Any]:
    return linear.plain, _NO_BIAS if linear.bias is None else linear.bias.numpy()
