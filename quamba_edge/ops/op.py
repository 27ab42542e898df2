"""What an op is: a contract (arguments in kernel order) with a numpy meaning.

The meaning sees logical arrays; a native kernel sees the same values as the argument's layout lays them in memory.  Every
backend is measured against the meaning (tests/ops/test_every_op.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Arg:
    """An array argument.  `shape` names sizes, such as "M K"; `strided` arrays come with a row stride after the pointer."""

    name: str
    dtype: str  # f32 f16 i8 i32, u4 (codes 0..15, one byte each in the logical array), or "state" (f32, f16 or i8)
    shape: str
    role: str = "in"  # in, out, inout
    layout: str = "row"
    strided: bool = False


def In(name: str, dtype: str, shape: str, layout: str = "row", strided: bool = False) -> Arg:
    return Arg(name, dtype, shape, "in", layout, strided)


def Out(name: str, dtype: str, shape: str, strided: bool = False) -> Arg:
    return Arg(name, dtype, shape, "out", "row", strided)


def InOut(name: str, dtype: str, shape: str, strided: bool = False) -> Arg:
    return Arg(name, dtype, shape, "inout", "row", strided)


@dataclass(frozen=True)
class Size:
    """An integer argument."""

    name: str


@dataclass(frozen=True)
class Scalar:
    """A float32 argument."""

    name: str


@dataclass(frozen=True)
class Op:
    """One contract.

    `reference(**arrays, **sizes, **scalars)` takes the in and inout arrays and every size and scalar by name, and returns
    the out and inout arrays in argument order (one array, or a tuple); it changes nothing in place and computes in the
    float dtype it is given.  `cases` are the sizes to test; `example(case, rng)` may supply inputs with meaningful values,
    by name, for the arguments that plain noise would not exercise.
    """

    name: str
    args: tuple[Arg | Size | Scalar, ...]
    reference: Callable[..., Any]
    cases: tuple[Mapping[str, Any], ...]
    example: Callable[[Mapping[str, Any], np.random.Generator], dict[str, np.ndarray]] | None = field(default=None)

    @property
    def arrays(self) -> tuple[Arg, ...]:
        return tuple(a for a in self.args if isinstance(a, Arg))

    @property
    def results(self) -> tuple[Arg, ...]:
        """Arguments that `reference` returns, in order."""
        return tuple(a for a in self.arrays if a.role != "in")


def all_ops() -> dict[str, Op]:
    """Every op of every file in this folder that has an `OPS` tuple, by name."""
    found: dict[str, Op] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        module = import_module(f"quamba_edge.ops.{path.stem}") if path.stem not in ("__init__", "op") else None
        for op in getattr(module, "OPS", ()):
            found[op.name] = op
    return found
