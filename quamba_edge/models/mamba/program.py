"""Mamba1's step as ops.  in_proj's output is [x | z], x_proj's is [dt's low-rank form | B | C].

Where the convolution writes int8 codes, x_proj reads them as they are: their per-channel scales are folded into its columns, and
its in_scale is 1.

Falcon-Mamba (config.mixer_norm_eps) normalizes all three parts of x_proj's output: the first on its way into dt_proj, B and C where
they lie.
"""

from __future__ import annotations

from typing import Any

from quamba_edge.errors import BadBundle
from quamba_edge.models.program import Builder, whole
from quamba_edge.ops.program import Program


def program(manifest: Any, sequences: int, tokens: int, logits: str = "last") -> Program:
    """One step of `sequences` times `tokens`; logits "last" (S, V), "all" (S*T, V) or "none"."""
    return whole(Builder(manifest, sequences, tokens), _layer, logits)


def _layer(b: Builder, at: str) -> None:
    c, S, T, M = b.config, b.S, b.T, b.M
    E, N, R, W = c.d_inner, c.d_state, c.dt_rank, c.d_conv

    xz = b.buffer("in_proj", (M, 2 * E), "f32")
    u = b.inputs("rmsnorm", f"{at}.in_proj", b.residual, M, c.d_model, eps=float(c.norm_eps))
    b.linear(f"{at}.in_proj", u, xz, M)

    kind = "i8" if b.has(f"{at}.conv.out_scale") else "f32"
    if (kind == "i8") != (b.site(f"{at}.x_proj")["act"] == 8):
        raise BadBundle(
            f"{at}: the convolution writes {kind}, which x_proj (act {b.site(f'{at}.x_proj')['act']}) cannot read: pack it again"
        )
    x = b.buffer(f"x_{kind}", (M, E), kind)
    conv = {"x": b.cols(xz, 0, E), "state": b.state(f"{at}.conv", (W - 1, E), "f32"), "y": x}
    conv |= b.weights(f"{at}.conv", weight="weight", bias="bias", **({"y_scale": "out_scale"} if kind == "i8" else {}))
    b.step(f"conv_silu_{kind}", f"{at}.conv", conv, S=S, T=T, C=E, W=W)

    dbc, dt = b.buffer("x_proj", (M, R + 2 * N), "f32"), b.buffer("dt", (M, E), "f32")
    b.linear(f"{at}.x_proj", x if kind == "i8" else b.inputs("quantize", f"{at}.x_proj", x, M, E), dbc, M)
    low, eps = b.cols(dbc, 0, R), c.mixer_norm_eps
    if eps is None:
        low = b.inputs("quantize", f"{at}.dt_proj", low, M, R)
    else:
        low = b.inputs("rmsnorm", f"{at}.dt_proj", low, M, R, eps=float(eps))
        BC = {"x": b.cols(dbc, R, R + 2 * N)}
        b.step("part_norm", f"{at}.norm", BC, M=M, E=2 * N, parts=2, eps=float(eps))
    b.linear(f"{at}.dt_proj", low, dt, M)

    y = b.buffer("y", (M, E), "f32")
    ssm = {"x": x, "dt": dt, "z": b.cols(xz, E, 2 * E), "state": b.state(f"{at}.ssm", (E, N), "state"), "y": y}
    ssm |= {"B": b.cols(dbc, R, R + N), "C": b.cols(dbc, R + N, R + 2 * N)}
    ssm |= b.weights(f"{at}.ssm", **{name: name for name in ("A", "D", "dt_bias", "state_rows", "state_cols")})
    ssm |= b.weights(f"{at}.conv", x_scale="out_scale") if kind == "i8" else {}
    b.step(f"scan_{kind}", f"{at}.ssm", ssm, S=S, T=T, E=E, N=N)
    b.out_proj(f"{at}.out_proj", y)
