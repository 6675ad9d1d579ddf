"""Decode attention on the CPU: one pass over the paged cache, compiled by numba.

Memory sets the pace, so each key and value is read once for all query heads that share it, and
the next block is fetched while this one is used. For each request, block and KV head:
1. dot products of the query heads with the block's keys (``dots``, all in vector registers);
2. a running softmax: if a larger score turns up, what was summed so far shrinks accordingly;
3. the values, weighted, are added to the sums (``add_weighted``).
"""

from functools import cache as memoize
from typing import Any

import numpy as np
import torch
from numba import njit

from splitwise.engine.torch.batch import Decodes
from splitwise.engine.torch.cpu_kernels import exp2_below_0
from splitwise.engine.torch.memory import PagedCache
from splitwise.engine.torch.vector_ir import add_weighted, dots, prefetch

_LINE_FLOATS = 16
_REGISTERS = 24  # of AVX-512's 32, those that may hold sums
_f32 = np.float32
_SIGNATURE = (
    "void(float32[:,:,:], float32[::1], int64, int32[:,::1], int32[::1], float32, float32[:,:,::1])"
)


def kernel_fits(query: torch.Tensor) -> bool:
    """Whether the compiled kernel can run: float32 on the CPU."""
    return query.dtype == torch.float32 and query.device.type == "cpu"


def decode_attention(
    query: torch.Tensor,
    cache: PagedCache,
    layer: int,
    decodes: Decodes,
    scale: float,
    out: torch.Tensor,
) -> None:
    """Attend with one token a request; ``query``, ``out``: ``[decodes, query_heads, head_dim]``."""
    _, kv_heads, _, block_tokens, head_dim = cache.chunks[layer].shape
    kernel = _make_kernel(head_dim, query.shape[1] // kv_heads, block_tokens)
    kernel(
        query.numpy(),
        cache.numbers[layer],
        kv_heads,
        decodes.tables.numpy(),
        decodes.lengths.numpy(),
        scale,
        out.numpy(),
    )


def _largest_divisor(number: int, most: int) -> int:
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)


@memoize
def _make_kernel(head_dim: int, group: int, block_tokens: int) -> Any:
    """Compile for these sizes: as constants they let LLVM unroll and vectorise every inner loop.

    ``group`` query heads share a KV head; ``team`` of them at a time have their sums in registers.
    """
    width = _largest_divisor(head_dim, _LINE_FLOATS)
    vectors = head_dim // width
    team = _largest_divisor(group, 8)
    pair = _largest_divisor(block_tokens, 2)  # tokens a ``dots``
    columns = width * _largest_divisor(vectors, max(1, _REGISTERS // team))
    log2_e = _f32(np.log2(np.e))
    lowest = _f32(-1e30)

    @njit(_SIGNATURE, fastmath=True, nogil=True, cache=True)
    def kernel(query, cache, kv_heads, tables, lengths, scale, out):  # type: ignore[no-untyped-def]
        heads = kv_heads * group
        values_at = block_tokens * head_dim
        block = kv_heads * 2 * values_at
        q = np.empty(heads * head_dim, _f32)
        sums = np.empty(heads * head_dim, _f32)
        top = np.empty(heads, _f32)
        total = np.empty(heads, _f32)
        p = np.empty(group * block_tokens, _f32)
        for s in range(query.shape[0]):
            top[:] = lowest
            total[:] = _f32(0)
            sums[:] = _f32(0)
            for i in range(heads):
                for d in range(head_dim):
                    q[i * head_dim + d] = query[s, i, d] * (scale * log2_e)  # exp becomes 2**x
            blocks = -(-lengths[s] // block_tokens)
            for b in range(blocks):
                from_here = np.int64(tables[s, b]) * block
                from_next = np.int64(tables[s, min(b + 1, blocks - 1)]) * block
                n = min(block_tokens, lengths[s] - b * block_tokens)
                for h in range(kv_heads):
                    first = h * group
                    keys = from_here + h * 2 * values_at
                    ahead = from_next + h * 2 * values_at
                    for t in range(0, block_tokens, pair):
                        for x in range(pair):
                            for line in range(0, head_dim, _LINE_FLOATS):
                                # Keys and values at once: memory gives more to two streams.
                                prefetch(cache, ahead + (t + x) * head_dim + line)
                                prefetch(cache, ahead + values_at + (t + x) * head_dim + line)
                        for g in range(0, group, team):
                            dots(
                                (q, (first + g) * head_dim, head_dim, team),
                                (cache, keys + t * head_dim, head_dim, pair),
                                (p, g * block_tokens + t, block_tokens),
                                head_dim,
                                width,
                            )
                    for g in range(group):
                        i = first + g
                        for t in range(n, block_tokens):
                            p[g * block_tokens + t] = lowest
                        highest = top[i]
                        for t in range(block_tokens):
                            highest = max(highest, p[g * block_tokens + t])
                        if highest > top[i]:
                            shrink = exp2_below_0(top[i] - highest)
                            total[i] *= shrink
                            for d in range(head_dim):
                                sums[i * head_dim + d] *= shrink
                            top[i] = highest
                        added = _f32(0)
                        for t in range(block_tokens):
                            weight = exp2_below_0(p[g * block_tokens + t] - highest)
                            p[g * block_tokens + t] = weight
                            added += weight
                        total[i] += added
                    for g in range(0, group, team):
                        for d in range(0, head_dim, columns):
                            add_weighted(
                                (sums, (first + g) * head_dim + d, head_dim, team),
                                (p, g * block_tokens, block_tokens),
                                (cache, keys + values_at + d, head_dim),
                                n,
                                columns,
                                width,
                            )
            for i in range(heads):
                for d in range(head_dim):
                    out[s, i, d] = sums[i * head_dim + d] / total[i]

    return kernel
