"""Mamba2's step as ops.  in_proj's output is [z | x B C | dt]; the convolution runs over x, B and C together."""

from __future__ import annotations

from typing import Any

from quamba_edge.models.program import Builder, whole
from quamba_edge.ops.program import Program


def program(manifest: Any, sequences: int, tokens: int, logits: str = "last") -> Program:
    """One step of `sequences` times `tokens`; logits "last" (S, V), "all" (S*T, V) or "none"."""
    return whole(Builder(manifest, sequences, tokens), _layer, logits)


def _layer(b: Builder, at: str) -> None:
    c, S, T, M = b.config, b.S, b.T, b.M
    E, N, P, g, W = c.d_inner, c.d_state, c.headdim, c.ngroups, c.d_conv
    H, C = E // P, E + 2 * g * N
    eps = float(c.norm_eps)

    zxbcdt = b.buffer("in_proj", (M, E + C + H), "f32")
    u = b.inputs("rmsnorm", f"{at}.in_proj", b.residual, M, c.d_model, eps=eps)
    b.linear(f"{at}.in_proj", u, zxbcdt, M)

    kind = "i8" if b.has(f"{at}.conv.out_scale") else "f32"
    xbc = b.buffer(f"xbc_{kind}", (M, C), kind)
    conv = {"x": b.cols(zxbcdt, E, E + C), "state": b.state(f"{at}.conv", (W - 1, C), "f32"), "y": xbc}
    conv |= b.weights(f"{at}.conv", weight="weight", bias="bias", **({"y_scale": "out_scale"} if kind == "i8" else {}))
    b.step(f"conv_silu_{kind}", f"{at}.conv", conv, S=S, T=T, C=C, W=W)

    y = b.buffer("y", (M, E), "f32")
    ssm = {
        "xbc": xbc,
        "dt": b.cols(zxbcdt, E + C, E + C + H),
        "state": b.state(f"{at}.ssm", (H, P, N), "state"),
        "y": y,
    }
    ssm |= b.weights(f"{at}.ssm", **{name: name for name in ("A", "D", "dt_bias", "state_rows", "state_cols")})
    ssm |= b.weights(f"{at}.conv", xbc_scale="out_scale") if kind == "i8" else {}
    limits = dict(zip(("dt_min", "dt_max"), map(float, c.dt_limit), strict=True))
    b.step(f"ssd_{kind}", f"{at}.ssm", ssm, S=S, T=T, H=H, P=P, N=N, g=g, **limits)

    b.step("gated_norm", f"{at}.norm", {"y": y, "z": b.cols(zxbcdt, 0, E)}, M=M, E=E, groups=g, eps=eps)
    b.out_proj(f"{at}.out_proj", y)
