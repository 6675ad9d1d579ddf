"""The compiled decode attention and the gathering one, against attention written out."""

import pytest
import torch

from splitwise.engine.base import ModelInfo
from splitwise.engine.torch.attention import decode_by_gather
from splitwise.engine.torch.batch import Decodes
from splitwise.engine.torch.decode_kernel import decode_attention
from splitwise.engine.torch.memory import PagedCache

CPU = torch.device("cpu")


def by_hand(query: torch.Tensor, cache: PagedCache, decodes: Decodes, scale: float) -> torch.Tensor:
    """Float64, one request and one head at a time."""
    out = torch.empty(query.shape, dtype=torch.float64)
    group = query.shape[1] // cache.chunks[1].shape[1]
    for s, length in enumerate(decodes.lengths.tolist()):
        chunks = cache.chunks[1][decodes.tables[s].long()].double()
        for h in range(query.shape[1]):
            keys, values = (chunks[:, h // group, x].flatten(0, 1)[:length] for x in (0, 1))
            scores = keys @ query[s, h].double() * scale
            out[s, h] = torch.softmax(scores, 0) @ values
    return out


@pytest.mark.parametrize("attention", [decode_attention, decode_by_gather])
@pytest.mark.parametrize(
    ("kv_heads", "group", "head_dim", "block_tokens"),
    [
        (3, 3, 64, 16),
        (2, 1, 128, 16),
        (1, 7, 20, 16),  # no multiple of a vector
        (2, 12, 32, 8),  # more query heads than stay in registers at once
        (1, 2, 7, 5),  # no multiple of anything
    ],
)
def test_equals_attention_by_hand(
    attention: object, kv_heads: int, group: int, head_dim: int, block_tokens: int
) -> None:
    torch.manual_seed(kv_heads * head_dim)
    blocks = 60
    chunk_bytes = 2 * block_tokens * kv_heads * head_dim * 4
    model = ModelInfo("m", 2, kv_heads, head_dim, "float32", vocab_size=9, max_context_tokens=9)
    cache = PagedCache(model, block_tokens, CPU, 2 * blocks * chunk_bytes)
    for chunks in cache.chunks:
        chunks.normal_()
    lengths = [1, block_tokens, block_tokens + 1, 7 * block_tokens - 2, 12 * block_tokens]
    order = torch.randperm(blocks, dtype=torch.int32)
    tables = torch.zeros(len(lengths), 12, dtype=torch.int32)
    tables[:] = order.view(5, 12)
    decodes = Decodes(len(lengths), tables, torch.tensor(lengths, dtype=torch.int32))
    # What lies behind a request's last token is another's, or nothing: it must not be read.
    for table, length in zip(tables.tolist(), lengths, strict=True):
        if length % block_tokens:
            chunk = cache.chunks[1][table[length // block_tokens]]
            chunk[:, :, length % block_tokens :] = torch.nan
    query = torch.randn(len(lengths), kv_heads * group, head_dim) * 3
    scale = head_dim**-0.5
    if attention is decode_by_gather:
        # Masked positions are multiplied by a weight of zero there: they must be finite.
        for chunks in cache.chunks:
            chunks.nan_to_num_(nan=1e4)
    out = torch.full_like(query, torch.nan)
    attention(query, cache, 1, decodes, scale, out)  # type: ignore[operator]
    expected = by_hand(query, cache, decodes, scale)
    torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=2e-5)
    cache.close()
