"""The final norm of a tied model, whose weight cannot be folded into the head because the head is the embedding.

y = rotate(weight * unrotate(rms(x))) in a rotated bundle (`rotate` = 1), else weight * rms(x).
"""

from __future__ import annotations

from quamba_edge import rotation
from quamba_edge.ops.numerics import Array, cases, rms
from quamba_edge.ops.op import In, Scalar, Size
from quamba_edge.ops.quantize import inputs_op


def tied_norm(x: Array, weight: Array, *, rotate: int, eps: float, **_: int) -> Array:
    normed, weight = rms(x, eps), weight.astype(x.dtype)
    if not rotate:
        return normed * weight
    return rotation.rotate(rotation.unrotate(normed) * weight)


SHAPES = (1, 64, 1), (2, 96, 1), (3, 160, 1), (1, 56, 1), (2, 72, 1), (4, 50, 0), (16, 128, 1)

OPS = inputs_op(
    "tied_norm",
    tied_norm,
    (In("weight", "f32", "K"),),
    (Size("rotate"), Scalar("eps")),
    cases("M K rotate eps", *((*row, 1e-5) for row in SHAPES)),
)
