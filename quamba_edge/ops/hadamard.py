"""The online rotation before out_proj, fused with the rounding that follows: R x = x M_K (quamba_edge/rotation.py).

Values that int8 cannot hold are clamped (the published kernel wraps around).
"""

from __future__ import annotations

from typing import Any

from quamba_edge import rotation
from quamba_edge.ops.numerics import Array, cases
from quamba_edge.ops.quantize import inputs_op


def hadamard(x: Array, **_: Any) -> Array:
    return rotation.rotate(x)


# One size of each base: 1, 12, 20, 28, and one that no base covers.
OPS = inputs_op(
    "hadamard",
    hadamard,
    (),
    (),
    cases("M K", (1, 128), (1, 1536), (2, 160), (3, 56), (2, 72), (16, 96), (5, 1024), (1, 5120)),
)
