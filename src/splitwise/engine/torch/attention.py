"""Attention over the paged cache, in the place of transformers' own.

Life cycle of a layer's attention (transformers calls ``paged_attention`` once a layer):
1. The keys and values of this iteration's tokens are written into the cache.
2. ``on_layer`` learns that the layer is complete, so that its transfer overlaps what follows.
3. All decodes attend in one call, reading the cache through their block tables.
4. Each prompt attends to itself; a prompt's later chunk also to what the cache holds of it.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from splitwise.engine.errors import ModelError
from splitwise.engine.torch.batch import Batch, Decodes, Piece
from splitwise.engine.torch.decode_kernel import decode_attention, kernel_fits
from splitwise.engine.torch.memory import PagedCache

NAME = "splitwise_paged"


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    batch: Batch | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend to all tokens of one iteration.

    ``query`` is ``[1, query_heads, tokens, head_dim]``, ``key`` and ``value`` the same with the
    KV heads. Returns ``[1, tokens, query_heads, head_dim]``.
    """
    if batch is None:
        raise ModelError(
            f"{type(module).__name__} does not hand attention arguments through; "
            "choose a model whose transformers code supports attention backends"
        )
    layer: int = module.layer_idx  # type: ignore[assignment]
    batch.cache.write(layer, batch.cache_rows, key[0].transpose(0, 1), value[0].transpose(0, 1))
    if batch.on_layer is not None:
        batch.on_layer(layer)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    rows = query[0].transpose(0, 1)
    out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    if count := batch.decodes.count:
        decode = decode_attention if kernel_fits(rows) else decode_by_gather
        decode(rows[:count], batch.cache, layer, batch.decodes, scale, out[:count])
    for piece in batch.pieces:
        out[piece.rows] = _attend_piece(query, key, value, batch.cache, layer, piece, scale)
    return out[None], None


def _attend_piece(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cache: PagedCache,
    layer: int,
    piece: Piece,
    scale: float,
) -> torch.Tensor:
    """``[tokens of the piece, query_heads, head_dim]``."""
    query = query[:, :, piece.rows]
    if piece.mask is None:
        key, value = key[:, :, piece.rows], value[:, :, piece.rows]
    else:
        length = piece.mask.shape[1]
        cached = cache.gather(layer, piece.blocks)
        key, value = (c.flatten(0, 1)[:length].transpose(0, 1)[None] for c in cached)
    attended = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=piece.mask,
        is_causal=piece.mask is None,
        scale=scale,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return attended[0].transpose(0, 1)


def decode_by_gather(
    query: torch.Tensor,
    cache: PagedCache,
    layer: int,
    decodes: Decodes,
    scale: float,
    out: torch.Tensor,
) -> None:
    """Any device and dtype: copy the blocks together, then attend under a length mask.

    ``query`` and ``out`` are ``[decodes, query_heads, head_dim]``.
    """
    keys, values = cache.gather(layer, decodes.tables)
    keys, values = (c.flatten(1, 2).transpose(1, 2) for c in (keys, values))
    seen = torch.arange(keys.shape[2], device=query.device)[None] < decodes.lengths[:, None]
    # The query heads that share a KV head become its query rows: [decodes, kv_heads, group, dim].
    grouped = query.reshape(len(query), keys.shape[1], -1, query.shape[-1])
    attended = scaled_dot_product_attention(
        grouped, keys, values, attn_mask=seen[:, None, None], scale=scale
    )
    out.copy_(attended.reshape(out.shape))


AttentionInterface.register(NAME, paged_attention)
