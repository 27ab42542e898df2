"""Mamba1's selective scan (Gu and Dao 2023, arXiv 2312.00752), with the state carried in and out and the gate at its end.

For channel e, token by token:

    d = softplus(dt[e] + dt_bias[e])
    s = exp(d A[e, n]) s + d B[n] x[e]                     s (N)
    y = (sum_n C[n] s[n] + D[e] x[e]) * SiLU(z[e])

scan_i8 reads x as codes with one scale a channel.  y comes from the fresh state; the state is rounded to its buffer's dtype
once, after the last token of the call.  An int8 state element [e, n] is code * state_rows[e] * state_cols[n], rounded with
`numerics.dither` from dt[e] of that token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from quamba_edge.ops.numerics import Array, cases, float_of, load_state, silu, softplus, store_state
from quamba_edge.ops.op import In, InOut, Op, Out, Size


def scan_f32(
    x: Array,
    dt: Array,
    dt_bias: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array,
    z: Array,
    state: Array,
    state_rows: Array,
    state_cols: Array,
    *,
    S: int,
    T: int,
    E: int,
    N: int,
) -> tuple[Array, Array]:
    """Returns (state, y): the argument order."""
    dtype = float_of(x, dt, dt_bias, A, B, C, D, z)
    x, A, B, C, D, z = (v.astype(dtype) for v in (x, A, B, C, D, z))
    d = softplus(dt.astype(dtype) + dt_bias.astype(dtype))  # (S, T, E)
    scale = state_rows[:, None] * state_cols  # (E, N)
    s = load_state(state, scale, dtype)
    y = np.empty((S, T, E), dtype)
    for t in range(T):
        s = np.exp(d[:, t, :, None] * A) * s + (d[:, t] * x[:, t])[..., None] * B[:, t, None, :]
        y[:, t] = (s @ C[:, t, :, None])[..., 0]
    return store_state(s, state, scale, dt[:, -1]), (y + D * x) * silu(z)


def scan_i8(x: Array, x_scale: Array, **kwargs: Any) -> tuple[Array, Array]:
    return scan_f32(x.astype(float_of(x_scale)) * x_scale, **kwargs)


def _example(case: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Array]:
    """Decays of trained models: A = -1..-N, softplus(dt + bias) about 0.001..0.1."""
    S, T, E, N = (case[n] for n in "STEN")
    given = {
        "x_scale": rng.uniform(0.01, 0.03, E),
        "dt": rng.normal(0, 1, (S, T, E)),
        "dt_bias": rng.uniform(-6, 0, E),
        "A": -np.tile(np.arange(1.0, N + 1), (E, 1)),
        "state_rows": rng.uniform(0.1, 0.3, E),
        "state_cols": rng.uniform(0.1, 0.3, N),
    }
    return {name: value.astype(np.float32) for name, value in given.items()}


def _op(kind: str, reference: Any) -> Op:
    args = (
        In("x", kind, "S T E"),
        *((In("x_scale", "f32", "E"),) if kind == "i8" else ()),
        In("dt", "f32", "S T E"),
        In("dt_bias", "f32", "E"),
        In("A", "f32", "E N"),
        In("B", "f32", "S T N", strided=True),
        In("C", "f32", "S T N", strided=True),
        In("D", "f32", "E"),
        In("z", "f32", "S T E", strided=True),
        InOut("state", "state", "S E N"),
        In("state_rows", "f32", "E"),
        In("state_cols", "f32", "N"),
        Out("y", "f32", "S T E"),
        *(Size(n) for n in "STEN"),
    )
    shapes = ((1, 1, 64, 16), (1, 3, 50, 16), (2, 5, 33, 8), (1, 16, 96, 16), (3, 1, 20, 7), (1, 128, 24, 16))
    return Op(f"scan_{kind}", args, reference, cases("S T E N", *shapes), _example)


OPS = (_op("f32", scan_f32), _op("i8", scan_i8))
