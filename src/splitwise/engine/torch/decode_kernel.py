"""Decode attention on CPU: one pass over the paged cache, compiled by numba.

Memory sets the pace here, so each key and value is read once, for all query heads that share it,
and the next block is fetched ahead of its use. The softmax is taken as the blocks go by (running
maximum and sum, as in FlashAttention).
"""

from functools import cache as memoize
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from splitwise.engine.torch.batch import Decodes
from splitwise.engine.torch.memory import PagedCache

_LINE_FLOATS = 16
_f32 = np.float32


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
    chunks = cache.chunks[layer].numpy()
    _, _, block_tokens, kv_heads, head_dim = chunks.shape
    kernel = _make_kernel(head_dim, query.shape[1] // kv_heads, block_tokens)
    kernel(
        query.numpy(),
        chunks,
        decodes.tables.numpy(),
        decodes.lengths.numpy(),
        _f32(scale),
        out.numpy(),
    )


@intrinsic
def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line that holds ``array[index]`` (one dimension)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), cgutils.voidptr_t)
        word = ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, word, word, word]),
            "llvm.prefetch.p0",
        )
        builder.call(function, [address, word(0), word(2), word(1)])
        return context.get_dummy_value()

    return types.void(array, index), generate


@memoize
def _make_kernel(head_dim: int, group: int, block_tokens: int) -> Any:
    """Compile for these sizes: as constants they let LLVM unroll and vectorise every inner loop."""
    lines = -(-head_dim // _LINE_FLOATS)
    log2_e = _f32(np.log2(np.e))
    lowest = _f32(-1e30)

    @njit(fastmath=True, nogil=True, cache=True)
    def kernel(query, chunks, tables, lengths, scale, out):  # type: ignore[no-untyped-def]
        kv_heads = chunks.shape[3]
        heads = kv_heads * group
        q = np.empty((heads, head_dim), _f32)
        o = np.empty((heads, head_dim), _f32)
        top = np.empty(heads, _f32)
        total = np.empty(heads, _f32)
        p = np.empty((group, block_tokens), _f32)
        power = np.empty((group, block_tokens), _f32)
        power_bits = power.view(np.int32)
        for s in range(query.shape[0]):
            for i in range(heads):
                top[i] = lowest
                total[i] = _f32(0)
                for d in range(head_dim):
                    q[i, d] = query[s, i, d] * (scale * log2_e)  # so that exp becomes 2**x
                    o[i, d] = _f32(0)
            blocks = -(-lengths[s] // block_tokens)
            for b in range(blocks):
                block = tables[s, b]
                ahead = tables[s, min(b + 1, blocks - 1)]
                n = min(block_tokens, lengths[s] - b * block_tokens)
                for h in range(kv_heads):
                    for t in range(n):
                        key = chunks[block, 0, t, h]
                        for line in range(lines):
                            _prefetch(chunks[ahead, 0, t, h], line * _LINE_FLOATS)
                        for g in range(group):
                            dot = _f32(0)
                            for d in range(head_dim):
                                dot += q[h * group + g, d] * key[d]
                            p[g, t] = dot
                    for g in range(group):
                        for t in range(n, block_tokens):
                            p[g, t] = lowest
                        i = h * group + g
                        highest = top[i]
                        for t in range(block_tokens):
                            highest = max(highest, p[g, t])
                        if highest > top[i]:
                            shrink = _f32(2) ** (top[i] - highest)
                            total[i] *= shrink
                            for d in range(head_dim):
                                o[i, d] *= shrink
                            top[i] = highest
                        # 2**x = 2**floor(x) * 2**(x - floor(x)): exponent bits times a polynomial.
                        for t in range(block_tokens):
                            x = max(p[g, t] - highest, _f32(-126))
                            whole = np.floor(x)
                            r = x - whole
                            y = _f32(1.5403530e-4)
                            y = y * r + _f32(1.3333558e-3)
                            y = y * r + _f32(9.6181291e-3)
                            y = y * r + _f32(5.5504109e-2)
                            y = y * r + _f32(2.4022651e-1)
                            y = y * r + _f32(6.9314718e-1)
                            p[g, t] = y * r + _f32(1)
                            power_bits[g, t] = (np.int32(whole) + np.int32(127)) << np.int32(23)
                        added = _f32(0)
                        for t in range(block_tokens):
                            p[g, t] *= power[g, t]
                            added += p[g, t]
                        total[i] += added
                    for t in range(n):
                        value = chunks[block, 1, t, h]
                        for line in range(lines):
                            _prefetch(chunks[ahead, 1, t, h], line * _LINE_FLOATS)
                        for g in range(group):
                            weight = p[g, t]
                            for d in range(head_dim):
                                o[h * group + g, d] += weight * value[d]
            for i in range(heads):
                for d in range(head_dim):
                    out[s, i, d] = o[i, d] / total[i]

    return kernel
