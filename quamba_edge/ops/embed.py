"""Look tokens up in the embedding, which lies as any linear site does: one matrix serves lookup and a tied head.

y[m] is row tokens[m] of W (N, K), f32.  Tokens are in 0..N-1; whoever feeds them has checked (runtime/session.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from quamba_edge.ops.linear import OFFSET, weight_args, weight_example, weight_sizes
from quamba_edge.ops.numerics import Array, cases, float_of
from quamba_edge.ops.op import Arg, In, Op, Out, Size


def embed_w4(tokens: Array, codes: Array, scales: Array, *, K: int, G: int, **_: int) -> Array:
    dtype = float_of(scales)
    w = codes[tokens].astype(dtype) - dtype.type(OFFSET)
    return w * np.repeat(scales[tokens].astype(dtype), G, axis=1)[:, :K]


def embed_w8(tokens: Array, codes: Array, scales: Array, **_: int) -> Array:
    dtype = float_of(scales)
    return codes[tokens].astype(dtype) * scales[tokens, None].astype(dtype)


def embed_w16(tokens: Array, weight: Array, **_: int) -> Array:
    return weight[tokens].astype(float_of(weight))


def _example(case: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Array]:
    tokens = rng.integers(0, case["N"], case["M"]).astype(np.int32)
    tokens[-1] = case["N"] - 1
    return {**weight_example(case, rng), "tokens": tokens}


def _op(bits: int, reference: Any) -> Op:
    args: tuple[Arg | Size, ...] = (In("tokens", "i32", "M"), *weight_args(bits), Out("y", "f32", "M K"), Size("M"))
    args += weight_sizes(bits)
    shapes = (1, 100, 64, 64), (7, 50, 192, 128), (16, 33, 44, 32), (128, 300, 96, 128)
    sizes = cases("M N K G", *shapes) if bits == 4 else cases("M N K", *(s[:3] for s in shapes))
    return Op(f"embed_w{bits}", args, reference, sizes, _example)


OPS = (_op(4, embed_w4), _op(8, embed_w8), _op(16, embed_w16))
