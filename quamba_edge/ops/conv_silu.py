"""Depthwise causal convolution over time, then SiLU: y[t] = SiLU(bias + sum_w weight[:, w] x[t - W + 1 + w]).

`state` holds the W - 1 inputs before the call, most recent last, and after it the last W - 1 ones; a fresh sequence's are zero.
conv_silu_i8 rounds every channel with its own static scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from quamba_edge.ops.numerics import Array, cases, float_of, silu, to_i8
from quamba_edge.ops.op import In, InOut, Op, Out, Size


def conv_silu_f32(
    x: Array, state: Array, weight: Array, bias: Array, *, T: int, W: int, **_: int
) -> tuple[Array, Array]:
    """Returns (state, y): the argument order."""
    dtype = float_of(x, state, weight, bias)
    window = np.concatenate([state.astype(dtype), x.astype(dtype)], axis=1)  # (S, W - 1 + T, C)
    v = np.broadcast_to(bias.astype(dtype), x.shape).copy()
    for w in range(W):
        v += window[:, w : w + T] * weight[:, w].astype(dtype)
    return window[:, T:].astype(state.dtype), silu(v)


def conv_silu_i8(
    x: Array, state: Array, weight: Array, bias: Array, y_scale: Array, **sizes: int
) -> tuple[Array, Array]:
    new, y = conv_silu_f32(x, state, weight, bias, **sizes)
    return new, to_i8(y, y_scale)


def _example(case: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Array]:
    return {"y_scale": rng.uniform(0.01, 0.03, case["C"]).astype(np.float32)}


def _op(out: str, reference: Any) -> Op:
    args = (
        In("x", "f32", "S T C", strided=True),
        InOut("state", "f32", "S W-1 C"),
        In("weight", "f32", "C W"),
        In("bias", "f32", "C"),
        *((In("y_scale", "f32", "C"),) if out == "i8" else ()),
        Out("y", out, "S T C"),
        *(Size(n) for n in "STCW"),
    )
    shapes = (1, 1, 64, 4), (1, 2, 50, 4), (3, 1, 33, 4), (2, 16, 96, 4), (1, 5, 16, 2), (1, 3, 16, 3), (1, 128, 40, 4)
    return Op(f"conv_silu_{out}", args, reference, cases("S T C W", *shapes), _example)


OPS = (_op("f32", conv_silu_f32), _op("i8", conv_silu_i8))
