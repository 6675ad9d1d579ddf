"""Attention over the paged cache, in the place of transformers' own.

Life cycle of a layer's attention (``attend``):
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


def attend(
    batch: Batch,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attention of all tokens of one iteration, in one layer.

    ``query`` is ``[tokens, query_heads, head_dim]``, ``key`` and ``value`` the same with the KV
    heads; the result has the shape of ``query``.
    """
    batch.cache.write(layer, batch.cache_rows, key, value)
    if (copies := batch.copies) is not None:
        batch.cache.write(layer, copies.cache_rows, key[copies.rows], value[copies.rows])
    if batch.on_layer is not None:
        batch.on_layer(layer)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if count := batch.decodes.count:
        decode = decode_attention if kernel_fits(query) else decode_by_gather
        decode(query[:count], batch.cache, layer, batch.decodes, scale, out[:count])
    for piece in batch.pieces:
        q, k, v = (tensor[piece.rows] for tensor in (query, key, value))
        out[piece.rows] = _attend_piece(q, k, v, batch.cache, layer, piece, scale)
    return out


def _attend_piece(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cache: PagedCache,
    layer: int,
    piece: Piece,
    scale: float,
) -> torch.Tensor:
    if piece.mask is None:
        keys, values = key.transpose(0, 1)[None], value.transpose(0, 1)[None]
    else:
        length = piece.mask.shape[1]
        keys, values = (c[:, :, :length] for c in cache.gather(layer, piece.blocks[None]))
    attended = scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys,
        values,
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
    seen = torch.arange(keys.shape[2], device=query.device)[None] < decodes.lengths[:, None]
    # The query heads that share a KV head become its query rows: [decodes, kv_heads, group, dim].
    grouped = query.reshape(len(query), keys.shape[1], -1, query.shape[-1])
    attended = scaled_dot_product_attention(
        grouped, keys, values, attn_mask=seen[:, None, None], scale=scale
    )
    out.copy_(attended.reshape(out.shape))


def _from_transformers(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    batch: Batch | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """``attend`` as transformers calls it: tensors are ``[1, heads, tokens, head_dim]``.

    Returns ``[1, tokens, query_heads, head_dim]``.
    """
    if batch is None:
        raise ModelError(
            f"{type(module).__name__} does not hand attention arguments through; "
            "choose a model whose transformers code supports attention backends"
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return attend(batch, module.layer_idx, query, key, value, scale)[None], None


AttentionInterface.register(NAME, _from_transformers)
