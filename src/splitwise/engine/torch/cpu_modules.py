"""Modules that take the place of a transformers model's own on the CPU, in float32.

Three costs rule small batches on a CPU: reading the weights, the overhead of a call into oneDNN
(9 microseconds), and the dozens of tiny operations that norms and rotary embeddings are made of.
Measured on one core of an AVX-512 server CPU that reads 40 GB/s, against plain torch:

- a weight packed once for oneDNN: 2.3 times as fast at 1024 rows, 2.2 at 32, 2.5 at 8, 2 at 1;
- one row against the plain weight in numba: 40 GB/s, where the packed weight gets 33;
- the norm in numba: 4 times as fast, at 1 row and at 512.

A module is taken for one of these by its shape, and is swapped only if the new one computes the
same on a probe; else it stays as it is, and only its linear layers and norms are looked at.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from splitwise.engine.torch.attention import attend
from splitwise.engine.torch.batch import Batch
from splitwise.engine.torch.cpu_kernels import rms_norm, rotate, times_row

_ROWS_HINT = 32  # oneDNN packs for a row count; packed for 32 rows, no batch size suffers
_PLAIN_COPIES_BYTES = 4 << 30
"""Up to this size of all weights together the plain ones are kept too, for single rows."""


class PackedLinear(nn.Module):
    """``nn.Linear`` layers of one input, side by side: the weight packed for oneDNN.

    ``keep_plain`` keeps the plain weight as well, for single rows.
    """

    def __init__(self, *linears: nn.Linear, keep_plain: bool) -> None:
        super().__init__()
        weights = [linear.weight.detach() for linear in linears]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        self.in_features, self.out_features = weight.shape[1], weight.shape[0]
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
        self.plain = weight.numpy() if keep_plain else None
        self.bias: torch.Tensor | None = None
        if any(linear.bias is not None for linear in linears):
            self.bias = torch.cat([_bias(linear) for linear in linears])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.plain is None or x.numel() != self.in_features:
            return torch.ops.mkldnn._linear_pointwise(  # type: ignore[no-any-return]
                x, self.packed, self.bias, "none", [], ""
            )
        out = torch.empty(self.out_features)
        times_row(self.plain, x.reshape(-1).numpy(), out.numpy())
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], self.out_features)


class CompiledRMSNorm(nn.Module):
    """The RMS norm of Llama and its kin: ``x / sqrt(mean(x**2) + epsilon) * weight``."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        weight: torch.Tensor = norm.weight  # type: ignore[assignment]
        self.weight = weight.detach().numpy()
        self.epsilon = np.float32(_epsilon(norm))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, len(self.weight))
        out = torch.empty(rows.shape)
        rms_norm(rows.numpy(), self.weight, self.epsilon, out.numpy())
        return out.view(x.shape)


class GatedMLP(nn.Module):
    """``down(act(gate(x)) * up(x))``, gate and up in one product."""

    def __init__(self, mlp: Any, keep_plain: bool) -> None:
        super().__init__()
        self.gate_up = PackedLinear(mlp.gate_proj, mlp.up_proj, keep_plain=keep_plain)
        self.down = PackedLinear(mlp.down_proj, keep_plain=keep_plain)
        self.act = mlp.act_fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        gated: torch.Tensor = self.act(gate).mul_(up)
        down: torch.Tensor = self.down(gated)
        return down


class FusedAttention(nn.Module):
    """Llama-like attention: one product for query, key and value, rotated in place."""

    def __init__(self, attention: Any, keep_plain: bool) -> None:
        super().__init__()
        self.head_dim = attention.head_dim
        self.query_heads = attention.q_proj.out_features // attention.head_dim
        self.kv_heads = attention.k_proj.out_features // attention.head_dim
        self.scale = attention.scaling
        self.layer = attention.layer_idx
        self.qkv = PackedLinear(
            attention.q_proj, attention.k_proj, attention.v_proj, keep_plain=keep_plain
        )
        self.out = PackedLinear(attention.o_proj, keep_plain=keep_plain)
        self.q_norm = _faster_norm(getattr(attention, "q_norm", None))
        self.k_norm = _faster_norm(getattr(attention, "k_norm", None))

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        batch: Batch,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        keys_from, values_from = self.query_heads, self.query_heads + self.kv_heads
        qkv = self.qkv(hidden_states).view(-1, values_from + self.kv_heads, self.head_dim)
        query, key, value = qkv.tensor_split((keys_from, values_from), dim=1)
        if self.q_norm is not None:
            query.copy_(self.q_norm(query))
        if self.k_norm is not None:
            key.copy_(self.k_norm(key))
        cos, sin = position_embeddings
        rotate(qkv.numpy(), values_from, cos[0].numpy(), sin[0].numpy())
        out = attend(batch, self.layer, query, key, value, self.scale)
        return self.out(out.view(1, len(out), -1)), None


def swap_modules(network: Any, probe: Batch, threads: int) -> None:
    """Swap modules of a float32 CPU model for those above, in place.

    ``probe`` is any batch; what it writes into the cache is of no use.
    """
    if not _can_pack():
        return
    weights_bytes = sum(p.numel() * p.itemsize for p in network.parameters())
    keep_plain = threads == 1 and weights_bytes <= _PLAIN_COPIES_BYTES
    rotary = getattr(network.base_model, "rotary_emb", None)

    def swap_children(parent: nn.Module) -> None:
        for name, child in list(parent.named_children()):
            new = _faster(child, probe, rotary, keep_plain)
            if new is None:
                swap_children(child)
            else:
                setattr(parent, name, new)

    swap_children(network)


def _can_pack() -> bool:
    """Whether this build of torch has oneDNN and the operations on packed weights."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and all(hasattr(torch.ops.mkldnn, name) for name in names)


def _faster(
    module: Any, probe: Batch, rotary: nn.Module | None, keep_plain: bool
) -> nn.Module | None:
    if type(module) is nn.Linear:
        return PackedLinear(module, keep_plain=keep_plain)
    if _has_linears(module, "gate_proj", "up_proj", "down_proj") and hasattr(module, "act_fn"):
        rows = probe_rows(probe, module.gate_proj.in_features)
        return _if_same(module, GatedMLP(module, keep_plain), lambda m: m(rows))
    if rotary is not None and _is_llama_like_attention(module):
        rows = probe_rows(probe, module.q_proj.in_features)
        angles = rotary(rows, probe.positions)

        def run(attention: nn.Module) -> torch.Tensor:
            out: torch.Tensor = attention(
                hidden_states=rows, position_embeddings=angles, attention_mask=None, batch=probe
            )[0]
            return out

        return _if_same(module, FusedAttention(module, keep_plain), run)
    faster = _faster_norm(module)
    return None if faster is module else faster


def _faster_norm(module: Any) -> Any:
    """A compiled norm if ``module`` is one that can be, else ``module`` itself."""
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or weight is None or weight.ndim != 1:
        return module
    if _epsilon(module) is None:
        return module
    # Some norms of that name scale by 1 + weight: they fail here and stay.
    rows = torch.linspace(-1, 2, 2 * len(weight)).view(2, -1)
    return _if_same(module, CompiledRMSNorm(module), lambda m: m(rows)) or module


def _if_same(
    old: nn.Module, new: nn.Module, run: Callable[[nn.Module], torch.Tensor]
) -> nn.Module | None:
    expected = run(old)
    return new if (run(new) - expected).norm() <= 1e-4 * expected.norm() else None


def _bias(linear: Any) -> torch.Tensor:
    if linear.bias is None:
        return torch.zeros(linear.out_features)
    bias: torch.Tensor = linear.bias.detach()
    return bias


def probe_rows(probe: Batch, width: int) -> torch.Tensor:
    """Rows of ``width`` for the tokens of ``probe``, to try a module with."""
    return torch.sin(torch.arange(probe.tokens.numel() * width) * 0.7).view(1, -1, width)


def _has_linears(module: Any, *names: str) -> bool:
    return all(type(getattr(module, name, None)) is nn.Linear for name in names)


def _is_llama_like_attention(module: Any) -> bool:
    if not _has_linears(module, "q_proj", "k_proj", "v_proj", "o_proj"):
        return False
    head_norms = [getattr(module, name, None) for name in ("q_norm", "k_norm")]
    return (
        all(hasattr(module, name) for name in ("head_dim", "scaling", "layer_idx"))
        and all(norm is None or norm.weight.numel() == module.head_dim for norm in head_norms)
        and "position_embeddings" in inspect.signature(module.forward).parameters
    )


def _epsilon(norm: nn.Module) -> Any:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
