"""RMSNorm without a weight within each of `parts` equal parts of E columns, in place.

Falcon-Mamba normalizes B and C, which lie side by side in x_proj's output, each over its own N values (TII 2024; transformers'
FalconMambaMixer).  The SSM reads them as f32, so nothing is rounded here.
"""

from __future__ import annotations

from quamba_edge.ops.numerics import Array, cases, float_of, rms
from quamba_edge.ops.op import InOut, Op, Scalar, Size


def part_norm(x: Array, *, parts: int, eps: float, **_: int) -> Array:
    return rms(x.astype(float_of(x)).reshape(len(x), parts, -1), eps).reshape(x.shape)


OPS = (
    Op(
        "part_norm",
        (InOut("x", "f32", "M E", strided=True), Size("M"), Size("E"), Size("parts"), Scalar("eps")),
        part_norm,
        cases(
            "M E parts eps",
            (1, 32, 2, 1e-6),
            (3, 50, 2, 1e-5),
            (16, 32, 2, 1e-6),
            (128, 96, 3, 1e-2),
            (5, 8, 1, 1e-6),
        ),
    ),
)
