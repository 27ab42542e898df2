"""Bring activations into the form a linear site reads: int8 codes with a static scale (A8), or f16 (A16).

`inputs_op` builds the _i8 and _f16 ops of every function that ends this way (norms, the rotation, and here the identity).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from quamba_edge.ops.numerics import Array, cases, float_of, to_f16, to_i8
from quamba_edge.ops.op import Arg, In, Op, Out, Scalar, Size


def inputs_op(
    name: str,
    function: Callable[..., Array],
    arrays: tuple[Arg, ...],
    rest: tuple[Size | Scalar, ...],
    sizes: tuple[Mapping[str, Any], ...],
) -> tuple[Op, Op]:
    """The two ops `name`_i8 and `name`_f16: function(x in its float dtype, *arrays, **sizes), then rounding.  x is (M, K)."""

    def exact(x: Array, kwargs: dict[str, Any]) -> Array:
        return function(x.astype(float_of(x, *(v for v in kwargs.values() if isinstance(v, np.ndarray)))), **kwargs)

    def as_i8(x: Array, x_scale: Array, **kwargs: Any) -> Array:
        return to_i8(exact(x, kwargs), x_scale)

    def as_f16(x: Array, **kwargs: Any) -> Array:
        return to_f16(exact(x, kwargs))

    def example(case: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Array]:
        """Values about 1 at 2.5 / 127 a step: some saturate."""
        return {"x_scale": np.array([2.5 / 127], np.float32)}

    head = (In("x", "f32", "M K", strided=True), *arrays)
    tail = (Size("M"), Size("K"), *rest)
    return (
        Op(f"{name}_i8", (*head, In("x_scale", "f32", "1"), Out("y", "i8", "M K"), *tail), as_i8, sizes, example),
        Op(f"{name}_f16", (*head, Out("y", "f16", "M K"), *tail), as_f16, sizes),
    )


def _identity(x: Array, **_: Any) -> Array:
    return x


OPS = inputs_op("quantize", _identity, (), (), cases("M K", (1, 64), (3, 48), (16, 20), (5, 1)))
