"""The device seam: six methods and `record` are a backend; one may choose tokens, too (`chooser`, `choose`).

Memory is a `Block`: opaque bytes of the backend that hold a C-order array.  A program is recorded once, with every argument
bound to weights of the bundle, blocks of the arena and blocks of the state, and then run as often as there are tokens.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from quamba_edge.errors import BadBundle
from quamba_edge.layouts import DTYPES, as_read
from quamba_edge.ops.numerics import shape_of
from quamba_edge.ops.op import Arg
from quamba_edge.ops.program import Program, Ref, Step

STATE_DTYPES = ("f32", "f16", "i8")


class Weights(Protocol):
    """What a backend needs of a bundle (bundle/reader.py)."""

    manifest: Any

    def tensor(self, name: str) -> np.ndarray:
        """The array as it is stored."""

    def logical(self, name: str) -> np.ndarray:
        """The decoded array."""

    def rows(self, name: str, a: int, b: int) -> np.ndarray:
        """Decoded rows [a, b); a is a multiple of 16."""

    def gather(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Decoded single rows (M,), reading only those."""


@dataclass(frozen=True)
class Block:
    """An array in a backend's memory.  `memory` is the backend's own handle; a view shares it."""

    memory: Any
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize

    def view(self, shape: tuple[int, ...], dtype: str) -> Block:
        """The same memory, from its beginning, as another array that fits in."""
        seen = replace(self, shape=tuple(shape), dtype=dtype)
        assert seen.nbytes <= self.nbytes, f"a view of {seen.nbytes} bytes in a block of {self.nbytes}"
        return seen


class Backend(ABC):
    """Runs recorded programs.  A module backends/<name>.py has `why_not() -> str | None` and `make(threads) -> Backend`."""

    name: str

    @abstractmethod
    def alloc(self, shape: tuple[int, ...], dtype: str) -> Block:
        """A zeroed block, on a 64-byte boundary."""

    @abstractmethod
    def upload(self, block: Block, array: np.ndarray) -> None:
        """Copy an array of the block's shape and dtype into it."""

    @abstractmethod
    def download(self, block: Block) -> np.ndarray:
        """A copy of the block's contents, after everything that was run."""

    def download_into(self, block: Block, array: np.ndarray) -> None:
        """The same, into an array of the block's shape and dtype."""
        array[...] = self.download(block)

    def load(  # noqa: B027  (nothing to do where weights are read from the file)
        self, weights: Weights, others: Callable[[], Mapping[str, int]], progress: Callable[[int, int], None]
    ) -> None:
        """Bring a bundle's weights to where programs read them, if the backend copies them; progress(bytes done, of all).

        others: what will be allocated beside them, bytes by name.  Missing, with nothing allocated, where all of it does not fit.
        """

    @abstractmethod
    def record(
        self, program: Program, weights: Weights, buffers: Mapping[str, Block], states: Mapping[str, Block]
    ) -> Any:
        """Bind every argument; what `run` takes.  BadBundle if the weights are not what the program needs."""

    @abstractmethod
    def run(self, recorded: Any) -> None:
        """Run it once on what the blocks hold; may return before it is done."""

    def chooser(self, logits: Block, V: int) -> Any | None:
        """For a backend that chooses tokens itself: what `choose` takes, for the first V of a block's logits; else None."""
        return None

    def choose(self, recorded: Any, chooser: Any, tokens: Block, ids: np.ndarray, request: np.ndarray) -> int | None:
        """Put `ids` into the block `tokens`, run, and choose what follows; None where that is left to the host.

        request: f64, of runtime/sampling.py's `Sampler.request`.
        """
        raise NotImplementedError

    @abstractmethod
    def sync(self) -> None:
        """Wait until everything that was run is done."""

    @abstractmethod
    def elapsed(self) -> float:
        """Seconds that the last run took."""


def check(program: Program, weights: Weights, states: Mapping[str, Block]) -> None:
    """Every reference of the program exists and has the shape, dtype and layout its op expects; native code relies on it."""
    buffers = {b.name: b for b in program.buffers}
    for step in program.steps:
        for arg in step.op.arrays:
            ref = step.args[arg.name]
            if ref.kind == "weight":
                _check_weight(step, arg, ref, weights)
            elif ref.kind == "buffer":
                _check_block(step, arg, ref, buffers[ref.name].shape, buffers[ref.name].dtype)
            else:
                _check_block(step, arg, ref, states[ref.name].shape, states[ref.name].dtype)


def _check_weight(step: Step, arg: Arg, ref: Ref, weights: Weights) -> None:
    found = weights.manifest.tensors.get(ref.name)
    expected = arg.dtype, shape_of(arg, step.sizes), arg.layout
    if found is None:
        raise BadBundle(
            f"the bundle has no tensor {ref.name}, which {step.op.name} at {step.site} reads: pack it again"
        )
    if (found.dtype, tuple(found.shape), as_read(found.layout)) != expected:
        raise BadBundle(
            f"tensor {ref.name} is {found.dtype} {tuple(found.shape)} {found.layout}, {step.site} needs {expected}: pack it again"
        )


def _check_block(step: Step, arg: Arg, ref: Ref, shape: tuple[int, ...], dtype: str) -> None:
    expected = shape_of(arg, step.sizes)
    allowed = STATE_DTYPES if arg.dtype == "state" else (arg.dtype,)
    count, width = math.prod(shape), shape[-1]
    if ref.rows is not None:
        count = count // shape[0] * (ref.rows[1] - ref.rows[0])
    if ref.cols is not None:
        a, b = ref.cols
        assert arg.strided and 0 <= a < b <= width and b - a == expected[-1], (
            f"{step.site}: {arg} bound to {ref} of {shape}"
        )
        count = count // width * (b - a)
    assert dtype in allowed and count == math.prod(expected), (
        f"{step.site}: {arg} {expected} bound to {ref} of {shape} {dtype}"
    )
