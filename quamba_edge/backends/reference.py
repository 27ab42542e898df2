"""The definition: runs every op's numpy meaning, step by step.

Weights are decoded to logical arrays as they are needed, matrices in slabs of rows and embeddings by the row, so that an 8B bundle
runs (slowly) in little memory; the codes of a small model are kept decoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from quamba_edge.backends.base import Block, Weights, check
from quamba_edge.backends.host import HostBackend, array_of
from quamba_edge.errors import BadUsage
from quamba_edge.ops.numerics import shape_of
from quamba_edge.ops.op import Arg
from quamba_edge.ops.program import Program, Ref, Step

SLAB = 4096  # rows of a matrix decoded at a time: 32 MB of codes at K = 8192
KEEP = 1 << 28  # weights; a model with fewer is kept decoded, at a byte a weight


def why_not() -> str | None:
    """Nothing keeps numpy from running."""
    return None


def make(threads: int | None = None) -> ReferenceBackend:
    if threads is not None:
        raise BadUsage("the reference backend takes no --threads: numpy decides; leave the flag away")
    return ReferenceBackend()


class Decoded:
    """Logical weights by name, whole or by rows."""

    def __init__(self, weights: Weights):
        self.weights = weights
        sizes = [int(np.prod(spec.shape)) for spec in weights.manifest.tensors.values()]
        self._kept: dict[str, np.ndarray] | None = {} if sum(sizes) < KEEP else None

    def whole(self, name: str) -> np.ndarray:
        if self._kept is None:
            return self.weights.logical(name)
        if name not in self._kept:
            self._kept[name] = self.weights.logical(name)
        return self._kept[name]

    def rows(self, name: str, a: int, b: int) -> np.ndarray:
        return self.whole(name)[a:b] if self._kept is not None else self.weights.rows(name, a, b)


class ReferenceBackend(HostBackend):
    name = "reference"

    def __init__(self) -> None:
        super().__init__()
        self._decoded: Decoded | None = None

    def record(
        self, program: Program, weights: Weights, buffers: Mapping[str, Block], states: Mapping[str, Block]
    ) -> list[Callable[[], None]]:
        check(program, weights, states)
        if self._decoded is None or self._decoded.weights is not weights:
            self._decoded = Decoded(weights)
        memory = {("buffer", name): block for name, block in buffers.items()}
        memory |= {("state", name): block for name, block in states.items()}
        return [_Bound(step, self._decoded, memory) for step in program.steps]

    def run(self, recorded: list[Callable[[], None]]) -> None:
        began = time.perf_counter()
        for call in recorded:
            call()
        self._elapsed = time.perf_counter() - began

    def times(self, recorded: list[Callable[[], None]]) -> np.ndarray:
        """Run it once, and the seconds that each step of the program took, f64 (steps,)."""
        marks = [time.perf_counter()]
        for call in recorded:
            call()
            marks.append(time.perf_counter())
        self._elapsed = marks[-1] - marks[0]
        return np.diff(marks)


class _Bound:
    """A step with views of its blocks, in the shapes its op names; calling it runs the meaning and stores the results."""

    def __init__(self, step: Step, decoded: Decoded, memory: Mapping[tuple[str, str], Block]):
        self.step, self.decoded = step, decoded
        self.views: dict[str, np.ndarray] = {}
        self.matrix: list[str] = []  # weight arguments with a row for each output feature
        self.vectors: list[str] = []  # other weights
        has_matrix = any(a.shape == "N K" for a in step.op.arrays)
        for arg in step.op.arrays:
            ref = step.args[arg.name]
            if ref.kind != "weight":
                self.views[arg.name] = _view(array_of(memory[ref.kind, ref.name]), ref, arg, step.sizes)
            else:
                by_row = has_matrix and arg.shape.split()[0] == "N"
                (self.matrix if by_row else self.vectors).append(arg.name)
        self.fixed: dict[str, Any] = {**step.sizes, **step.scalars}

    def __call__(self) -> None:
        read = {n: self.decoded.whole(self.step.args[n].name) for n in self.vectors}
        if not self.matrix:
            self._store(self._meaning(self.views, read, {}), self.views)
        elif "tokens" in self.views:
            tokens = self.views["tokens"]
            read |= {n: self.decoded.weights.gather(self.step.args[n].name, tokens) for n in self.matrix}
            looked_up = {**self.views, "tokens": np.arange(len(tokens), dtype=np.int32)}
            self._store(self._meaning(looked_up, read, {"N": len(tokens)}), self.views)
        else:
            for a in range(0, self.step.sizes["N"], SLAB):
                b = min(a + SLAB, self.step.sizes["N"])
                slab = {n: self.decoded.rows(self.step.args[n].name, a, b) for n in self.matrix}
                views = {**self.views, "y": self.views["y"][:, a:b]}
                self._store(self._meaning(views, {**read, **slab}, {"N": b - a}), views)

    def _meaning(
        self, views: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray], sizes: Mapping[str, int]
    ) -> Any:
        given = {a.name: views[a.name] for a in self.step.op.arrays if a.role != "out" and a.name in views}
        return self.step.op.reference(**given, **weights, **{**self.fixed, **sizes})

    def _store(self, results: Any, views: Mapping[str, np.ndarray]) -> None:
        outs = self.step.op.results
        for arg, value in zip(outs, results if len(outs) > 1 else (results,), strict=True):
            views[arg.name][...] = value


def _view(array: np.ndarray, ref: Ref, arg: Arg, sizes: Mapping[str, int]) -> np.ndarray:
    """The part of a buffer or state that `ref` selects, shaped as `arg` says; never a copy."""
    if ref.rows is not None:
        array = array[ref.rows[0] : ref.rows[1]]
    if ref.cols is not None:
        array = array[..., ref.cols[0] : ref.cols[1]]
    view = array.reshape(shape_of(arg, sizes))
    assert np.shares_memory(view, array), f"{ref} cannot be seen as {arg}"
    return view
