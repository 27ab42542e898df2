"""Mamba2's gated norm, in place: v = y * SiLU(z) first, then RMSNorm within each of `groups` equal parts of E.

Groups are the SSD groups (mamba_ssm, norm_before_gate=False); a norm over all of E would be another model.  The weight is
folded into out_proj.
"""

from __future__ import annotations

from quamba_edge.ops.numerics import Array, cases, float_of, rms, silu
from quamba_edge.ops.op import In, InOut, Op, Scalar, Size


def gated_norm(y: Array, z: Array, *, groups: int, eps: float, **_: int) -> Array:
    dtype = float_of(y, z)
    v = y.astype(dtype) * silu(z.astype(dtype))
    return rms(v.reshape(len(v), groups, -1), eps).reshape(v.shape)


OPS = (
    Op(
        "gated_norm",
        (
            InOut("y", "f32", "M E"),
            In("z", "f32", "M E", strided=True),
            Size("M"),
            Size("E"),
            Size("groups"),
            Scalar("eps"),
        ),
        gated_norm,
        cases(
            "M E groups eps",
            (1, 128, 1, 1e-5),
            (1, 1536, 1, 1e-5),
            (3, 96, 4, 1e-2),
            (16, 256, 8, 1e-5),
            (5, 50, 2, 1e-5),
        ),
    ),
)
