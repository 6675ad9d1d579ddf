"""Small numba kernels for the CPU, float32."""

import numpy as np
from numba import njit

from splitwise.engine.torch.vector_ir import float_of_bits

_f32 = np.float32
_LOG2_E = _f32(np.log2(np.e))


@njit(fastmath=True, inline="always")
def exp2_below_0(x):  # type: ignore[no-untyped-def]
    """2**x for x <= 0: exponent bits for the whole part, a polynomial for the rest."""
    x = max(x, _f32(-126))
    whole = np.floor(x)
    r = x - whole
    y = _f32(1.5403530e-4)
    y = y * r + _f32(1.3333558e-3)
    y = y * r + _f32(9.6181291e-3)
    y = y * r + _f32(5.5504109e-2)
    y = y * r + _f32(2.4022651e-1)
    y = y * r + _f32(6.9314718e-1)
    y = y * r + _f32(1)
    return y * float_of_bits((np.int32(whole) + np.int32(127)) << np.int32(23))


@njit(fastmath=True, nogil=True, cache=True)
def times_row(weight, x, out):  # type: ignore[no-untyped-def]
    """``out = weight @ x`` for ``weight`` ``[out, in]``, at the pace of memory.

    Four rows far apart at a time: the processor's prefetchers follow several streams, and one
    alone gets a quarter less out of memory.
    """
    quarter = weight.shape[0] // 4
    for i in range(quarter):
        a = b = c = d = _f32(0)
        for k in range(weight.shape[1]):
            a += weight[i, k] * x[k]
            b += weight[i + quarter, k] * x[k]
            c += weight[i + 2 * quarter, k] * x[k]
            d += weight[i + 3 * quarter, k] * x[k]
        out[i] = a
        out[i + quarter] = b
        out[i + 2 * quarter] = c
        out[i + 3 * quarter] = d
    for i in range(4 * quarter, weight.shape[0]):
        a = _f32(0)
        for k in range(weight.shape[1]):
            a += weight[i, k] * x[k]
        out[i] = a


@njit(fastmath=True, nogil=True, cache=True)
def rms_norm(rows, weight, epsilon, out):  # type: ignore[no-untyped-def]
    """``out = rows / sqrt(mean(rows**2) + epsilon) * weight``, for each row of ``[n, width]``."""
    width = rows.shape[1]
    for i in range(rows.shape[0]):
        squares = _f32(0)
        for k in range(width):
            squares += rows[i, k] * rows[i, k]
        scale = _f32(1) / np.sqrt(squares / _f32(width) + epsilon)
        for k in range(width):
            out[i, k] = rows[i, k] * scale * weight[k]


@njit(fastmath=True, nogil=True, cache=True)
def rotate(rows, heads, cos, sin):  # type: ignore[no-untyped-def]
    """Rotary position embedding, in place, on the first ``heads`` heads of each token.

    ``rows`` is ``[tokens, all heads, head_dim]``; ``cos`` and ``sin`` are ``[tokens, rotated]``,
    where ``rotated <= head_dim``; dimension ``i`` turns with ``i + rotated / 2``.
    """
    half = cos.shape[1] // 2
    for t in range(rows.shape[0]):
        for h in range(heads):
            for i in range(half):
                a, b = rows[t, h, i], rows[t, h, i + half]
                rows[t, h, i] = a * cos[t, i] - b * sin[t, i]
                rows[t, h, i + half] = b * cos[t, i + half] + a * sin[t, i + half]


@njit(fastmath=True, nogil=True, cache=True)
def row_to_qkv(row, norm, epsilon, weight, bias, heads, cos, sin, qkv):  # type: ignore[no-untyped-def]
    """One token's ``qkv`` ``[all heads, head_dim]``: norm, product, rotation of ``heads`` heads."""
    normed = np.empty((1, len(norm)), _f32)
    rms_norm(row, norm, epsilon, normed)
    flat = qkv.reshape(-1)
    times_row(weight, normed[0], flat)
    for i in range(len(bias)):
        flat[i] += bias[i]
    rotate(qkv.reshape((1, qkv.shape[0], qkv.shape[1])), heads, cos, sin)


@njit(fastmath=True, nogil=True, cache=True)
def row_after_attention(  # type: ignore[no-untyped-def]
    row, attended, out_weight, out_bias, norm, epsilon, gate_up, gate_up_bias, down, down_bias, out
):
    """The rest of a token's layer: ``out = x + mlp(norm(x))``, ``x = row + out_weight @ attended``.

    All but the weights and biases (empty where there are none) are ``[1, width]``; the MLP is
    ``down @ (silu(gate) * up)``.
    """
    width, inner = row.shape[1], gate_up.shape[0] // 2
    normed = np.empty((1, width), _f32)
    both = np.empty(2 * inner, _f32)
    x, added = np.empty((1, width), _f32), np.empty(width, _f32)
    times_row(out_weight, attended[0], x[0])
    for i in range(len(out_bias)):
        x[0, i] += out_bias[i]
    for i in range(width):
        x[0, i] += row[0, i]
    rms_norm(x, norm, epsilon, normed)
    times_row(gate_up, normed[0], both)
    for i in range(len(gate_up_bias)):
        both[i] += gate_up_bias[i]
    for i in range(inner):
        gate = both[i]
        e = exp2_below_0(-abs(gate) * _LOG2_E)
        both[i] = gate * (_f32(1) if gate >= 0 else e) / (_f32(1) + e) * both[i + inner]
    times_row(down, both[:inner], added)
    for i in range(len(down_bias)):
        added[i] += down_bias[i]
    for i in range(width):
        out[0, i] = x[0, i] + added[i]
