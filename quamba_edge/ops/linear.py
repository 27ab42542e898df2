"""Matrix products with quantized weights: y[m, n] = sum_k x[m, k] W[n, k].

A8: x arrives as int8 with one static scale; products are summed as integers within a group of G columns (4-bit) or over all of
K (8-bit), and scales multiply the integer sums.  A16: x is f16 and sums are floats.  `add` = 1 adds the result to y, which is
how out_proj joins the residual stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from quamba_edge.ops.numerics import Array, cases, float_of
from quamba_edge.ops.op import Arg, In, InOut, Op, Size

OFFSET = 8  # 4-bit codes 0..15 stand for -8..7


def weight_args(bits: int) -> tuple[Arg, ...]:
    """The tensors of a linear site (docs/architecture.md, section 2)."""
    if bits == 16:
        return (In("weight", "f16", "N K"),)
    if bits == 8:
        return In("codes", "i8", "N K", "n16k4"), In("scales", "f32", "N")
    return In("codes", "u4", "N K", "n16k8"), In("scales", "f16", "N (K+G-1)//G", "n16")


def weight_sizes(bits: int) -> tuple[Size, ...]:
    return (Size("N"), Size("K")) if bits > 4 else (Size("N"), Size("K"), Size("G"))


def integer_dot(x: Array, w: Array, peak: int) -> Array:
    """x (M, K) @ w (N, K)^T of integers, exact, as floats; no product exceeds `peak` in magnitude.

    BLAS adds floats, and those are exact while every partial sum stays below 2^24 (f32) or 2^53 (f64).
    """
    dtype = np.dtype(np.float32 if peak * x.shape[1] < 1 << 24 else np.float64)
    return np.matmul(x.astype(dtype), w.astype(dtype).T)


def groups(K: int, G: int) -> Iterator[tuple[int, slice]]:
    """(g, its columns); the last group may be shorter."""
    for g, a in enumerate(range(0, K, G)):
        yield g, slice(a, min(a + G, K))


def linear_w4a8(
    x: Array, x_scale: Array, codes: Array, scales: Array, y: Array, *, K: int, G: int, add: int, **_: int
) -> Array:
    dtype = float_of(x_scale, y)
    total = np.zeros(y.shape, dtype)
    for g, cols in groups(K, G):
        w = codes[:, cols].astype(np.int8) - OFFSET
        total += scales[:, g].astype(dtype) * integer_dot(x[:, cols], w, 127 * OFFSET).astype(dtype)
    return total * x_scale.astype(dtype) + (y if add else 0)


def linear_w8a8(x: Array, x_scale: Array, codes: Array, scales: Array, y: Array, *, add: int, **_: int) -> Array:
    dtype = float_of(x_scale, scales, y)
    total = integer_dot(x, codes, 127 * 127).astype(dtype)
    return total * (x_scale * scales).astype(dtype) + (y if add else 0)


def linear_w4a16(x: Array, codes: Array, scales: Array, y: Array, *, K: int, G: int, add: int, **_: int) -> Array:
    dtype = float_of(x, y)
    x, total = x.astype(dtype), np.zeros(y.shape, dtype)
    for g, cols in groups(K, G):
        w = codes[:, cols].astype(dtype) - dtype.type(OFFSET)
        total += scales[:, g].astype(dtype) * (x[:, cols] @ w.T)
    return total + (y if add else 0)


def linear_w8a16(x: Array, codes: Array, scales: Array, y: Array, *, add: int, **_: int) -> Array:
    dtype = float_of(x, scales, y)
    return (x.astype(dtype) @ codes.astype(dtype).T) * scales.astype(dtype) + (y if add else 0)


def linear_w16a16(x: Array, weight: Array, y: Array, *, add: int, **_: int) -> Array:
    dtype = float_of(x, weight, y)
    return x.astype(dtype) @ weight.astype(dtype).T + (y if add else 0)


def weight_example(case: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Array]:
    """Scales of the size that real sites have; those of 4-bit groups may be negative."""
    N, K = case["N"], case["K"]
    shape, dtype = ((N, -(-K // case["G"])), np.float16) if "G" in case else ((N,), np.float32)
    sign = rng.choice([-1, 1], shape) if "G" in case else 1
    return {"scales": (sign * rng.uniform(0.001, 0.02, shape)).astype(dtype)}


def _example(case: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Array]:
    return {**weight_example(case, rng), "x_scale": rng.uniform(0.01, 0.05, 1).astype(np.float32)}


def _op(bits: int, act: int, reference: Any) -> Op:
    x = (In("x", "i8", "M K"), In("x_scale", "f32", "1")) if act == 8 else (In("x", "f16", "M K"),)
    args = (*x, *weight_args(bits), InOut("y", "f32", "M N"), Size("M"), *weight_sizes(bits), Size("add"))
    # Decode and prefill, whole tiles and tails, stages of a pipeline: rows no multiple of 16, columns of neither 8 nor the group.
    shapes = [(1, 96, 256, 0, 128), (1, 50, 192, 1, 128), (2, 33, 44, 0, 32), (5, 16, 8, 1, 8), (17, 130, 384, 0, 128)]
    shapes += [(3, 20, 1100, 1, 64), (128, 64, 128, 0, 128), (66, 132, 512, 1, 128), (40, 45, 384, 1, 384)]
    sizes = cases("M N K add G", *shapes) if bits == 4 else cases("M N K add", *(s[:4] for s in shapes))
    return Op(f"linear_w{bits}a{act}", args, reference, sizes, _example)


OPS = (
    _op(4, 8, linear_w4a8),
    _op(8, 8, linear_w8a8),
    _op(4, 16, linear_w4a16),
    _op(8, 16, linear_w8a16),
    _op(16, 16, linear_w16a16),
)
