"""What a step of a program must move and compute at least, from its sizes alone: the ceilings that measurements stand beside.

Bytes: every weight once, as wide as kernels read it (an embedding only the rows that are looked up), states read and written,
activations as the op's arguments.
Multiply-adds: those of matrix products, convolutions and recurrences; norms, rotations and rounding are counted by their bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from quamba_edge.layouts import itemsize
from quamba_edge.ops.numerics import shape_of
from quamba_edge.ops.program import Program, Step


@dataclass(frozen=True)
class Cost:
    """weights, state, activations: bytes.  dots, fmas: multiply-adds of int8 and of floats."""

    weights: int = 0
    state: int = 0
    activations: int = 0
    dots: int = 0
    fmas: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(self.fields(), other.fields(), strict=True)))

    def fields(self) -> tuple[int, ...]:
        return self.weights, self.state, self.activations, self.dots, self.fmas

    @property
    def memory(self) -> int:
        """Bytes that must come from memory or go there: weights and states.  Activations of a step stay in caches."""
        return self.weights + self.state

    def seconds(self, bandwidth: float, dots: float, fmas: float) -> float:
        """The least time on a machine of so many bytes and multiply-adds a second."""
        return max(self.memory / bandwidth, self.dots / dots + self.fmas / fmas)


def cost_of(step: Step, manifest: Any, state_dtype: str) -> Cost:
    """The cost of one step of a program of this manifest; `state_dtype` is the session's choice."""
    weights = state = activations = 0
    looked_up = "tokens" in step.args
    for arg in step.op.arrays:
        ref, size = step.args[arg.name], math.prod(shape_of(arg, step.sizes))
        if ref.kind == "weight":
            loaded = manifest.tensors[ref.name].loaded_bytes
            weights += loaded * step.sizes["M"] // step.sizes["N"] if looked_up else loaded
        elif ref.kind == "state":
            state += 2 * size * itemsize(state_dtype if arg.dtype == "state" else arg.dtype)
        else:
            activations += (2 if arg.role == "inout" else 1) * size * itemsize(arg.dtype)
    return Cost(weights, state, activations, *_arithmetic(step))


def total(program: Program, manifest: Any, state_dtype: str) -> Cost:
    """The cost of a whole program.  A matrix that two steps read (a tied head) counts for each, less the rows looked up."""
    return sum((cost_of(step, manifest, state_dtype) for step in program.steps), Cost())


def _arithmetic(step: Step) -> tuple[int, int]:
    """(int8, float) multiply-adds of a step."""
    s, name = step.sizes, step.op.name
    if name.startswith("linear"):
        products = s["M"] * s["N"] * s["K"]
        return (products, 0) if name.endswith("a8") else (0, products)
    if name.startswith("conv"):
        return 0, s["S"] * s["T"] * s["C"] * s["W"]
    if name.startswith("ssd"):  # decay, input, output: three for each element of the state and token
        return 0, 3 * s["S"] * s["T"] * s["H"] * s["P"] * s["N"]
    if name.startswith("scan"):
        return 0, 3 * s["S"] * s["T"] * s["E"] * s["N"]
    return 0, 0
