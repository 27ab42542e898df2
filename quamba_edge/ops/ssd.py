"""Mamba2's state space recurrence (Dao and Gu 2024, arXiv 2405.21060), with the state carried in and out.

For head h of channels p in group G = h // (H / g), token by token:

    d     = clamp(softplus(dt[h] + dt_bias[h]), dt_min, dt_max)
    s     = exp(d A[h]) s + d x[h, p] B[G, n]                      s (P, N)
    y     = sum_n C[G, n] s[p, n] + D[h] x[h, p]

xbc's channels are x (H*P), B (g*N), C (g*N), as the convolution wrote them; ssd_i8 reads codes with one scale a channel.
y comes from the fresh state; the state is rounded to its buffer's dtype once, after the last token of the call.  An int8 state
element [h, p, n] is code * state_rows[h*P + p] * state_cols[G*N + n], rounded with `numerics.dither` from dt[h] of that token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from quamba_edge.ops.numerics import Array, cases, float_of, load_state, softplus, store_state
from quamba_edge.ops.op import In, InOut, Op, Out, Scalar, Size


def ssd_f32(
    xbc: Array,
    dt: Array,
    dt_bias: Array,
    A: Array,
    D: Array,
    state: Array,
    state_rows: Array,
    state_cols: Array,
    *,
    S: int,
    T: int,
    H: int,
    P: int,
    N: int,
    g: int,
    dt_min: float,
    dt_max: float,
) -> tuple[Array, Array]:
    """Returns (state, y): the argument order."""
    dtype = float_of(xbc, dt, dt_bias, A, D)
    x, B, C = np.split(xbc.astype(dtype), [H * P, H * P + g * N], axis=2)
    x = x.reshape(S, T, H, P)
    B, C = (np.repeat(v.reshape(S, T, g, N), H // g, axis=2) for v in (B, C))  # (S, T, H, N)
    d = np.clip(softplus(dt.astype(dtype) + dt_bias.astype(dtype)), dtype.type(dt_min), dtype.type(dt_max))  # (S, T, H)
    decay = np.exp(d * A.astype(dtype))
    scale = state_rows.reshape(H, P, 1) * np.repeat(state_cols.reshape(g, 1, N), H // g, axis=0)  # (H, P, N)
    s = load_state(state, scale, dtype)
    y = np.empty((S, T, H, P), dtype)
    for t in range(T):
        s = decay[:, t, :, None, None] * s + (d[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None, :]
        y[:, t] = (s @ C[:, t, :, :, None])[..., 0]
    y += D.astype(dtype)[:, None] * x
    return store_state(s, state, scale, np.repeat(dt[:, -1], P, axis=1)), y.reshape(S, T, H * P)


def ssd_i8(xbc: Array, xbc_scale: Array, **kwargs: Any) -> tuple[Array, Array]:
    return ssd_f32(xbc.astype(float_of(xbc_scale)) * xbc_scale, **kwargs)


def _example(case: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Array]:
    """Decays of trained models: A in -16..-1, softplus(dt + bias) about 0.001..0.1."""
    H, E, gN = case["H"], case["H"] * case["P"], case["g"] * case["N"]
    given = {
        "xbc_scale": rng.uniform(0.01, 0.03, E + 2 * gN),
        "dt": rng.normal(0, 1, (case["S"], case["T"], H)),
        "dt_bias": rng.uniform(-6, 0, H),
        "A": -rng.uniform(0.5, 16, H),
        "state_rows": rng.uniform(0.1, 0.3, E),
        "state_cols": rng.uniform(0.1, 0.3, gN),
    }
    return {name: value.astype(np.float32) for name, value in given.items()}


def _op(kind: str, reference: Any) -> Op:
    args = (
        In("xbc", kind, "S T H*P+2*g*N"),
        *((In("xbc_scale", "f32", "H*P+2*g*N"),) if kind == "i8" else ()),
        In("dt", "f32", "S T H", strided=True),
        In("dt_bias", "f32", "H"),
        In("A", "f32", "H"),
        In("D", "f32", "H"),
        InOut("state", "state", "S H P N"),
        In("state_rows", "f32", "H*P"),
        In("state_cols", "f32", "g*N"),
        Out("y", "f32", "S T H*P"),
        *(Size(n) for n in ("S", "T", "H", "P", "N", "g")),
        Scalar("dt_min"),
        Scalar("dt_max"),
    )
    shapes = (
        (1, 1, 4, 16, 32, 1),
        (1, 3, 6, 8, 16, 2),
        (2, 5, 8, 4, 20, 4),
        (1, 16, 2, 64, 128, 1),
        (3, 1, 3, 5, 7, 3),
        (1, 128, 2, 8, 16, 1),
        (2, 37, 4, 68, 20, 2),
    )
    sizes = cases("S T H P N g dt_min dt_max", *((*s, 0.0, math.inf) for s in shapes), (1, 3, 6, 8, 16, 2, 0.01, 0.1))
    return Op(f"ssd_{kind}", args, reference, sizes, _example)


OPS = (_op("f32", ssd_f32), _op("i8", ssd_i8))
