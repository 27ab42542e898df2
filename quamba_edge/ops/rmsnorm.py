"""RMSNorm without a weight, into the form a linear reads: x / sqrt(mean(x^2) + eps).

The weight is folded into the columns of the matrix that follows (Quamba2, section 4).
"""

from __future__ import annotations

from typing import Any

from quamba_edge.ops.numerics import Array, cases, rms
from quamba_edge.ops.op import Scalar
from quamba_edge.ops.quantize import inputs_op


def rmsnorm(x: Array, *, eps: float, **_: Any) -> Array:
    return rms(x, eps)


OPS = inputs_op(
    "rmsnorm",
    rmsnorm,
    (),
    (Scalar("eps"),),
    cases("M K eps", (1, 768, 1e-5), (1, 64, 1e-5), (3, 50, 1e-5), (16, 256, 1e-2), (128, 96, 1e-5)),
)
