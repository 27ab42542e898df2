"""A program recorded on a backend, with its activations in an arena shared by all programs of a session."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from quamba_edge.backends.base import Backend, Block, Weights
from quamba_edge.layouts import DTYPES
from quamba_edge.ops.program import Buffer, Program


def nbytes(buffer: Buffer) -> int:
    """Bytes of a buffer."""
    return math.prod(buffer.shape) * np.dtype(DTYPES[buffer.dtype]).itemsize


def arena_sizes(programs: Iterable[Program]) -> dict[str, int]:
    """Bytes that each buffer name needs to serve every one of the programs."""
    sizes: dict[str, int] = {}
    for program in programs:
        for buffer in program.buffers:
            sizes[buffer.name] = max(sizes.get(buffer.name, 0), nbytes(buffer))
    return sizes


class Arena:
    """One block for each buffer name, large enough for all of `programs`; contents do not outlive a run."""

    def __init__(self, backend: Backend, programs: Iterable[Program]):
        self._blocks = {name: backend.alloc((size,), "u8") for name, size in arena_sizes(programs).items()}
        self.nbytes = sum(b.nbytes for b in self._blocks.values())

    def bind(self, program: Program) -> dict[str, Block]:
        """The buffers of a program, as views of the arena."""
        return {b.name: self._blocks[b.name].view(b.shape, b.dtype) for b in program.buffers}


class Plan:
    """`run(tokens)` advances the states by one program; `logits()` reads what it left.

    vocabulary  how many of the logits' ids may be chosen, for a backend that chooses (`choose`)
    """

    def __init__(
        self,
        backend: Backend,
        program: Program,
        weights: Weights,
        arena: Arena,
        states: Mapping[str, Block],
        vocabulary: int | None = None,
    ):
        self.program, self.backend = program, backend
        self.buffers = arena.bind(program)
        self._recorded = backend.record(program, weights, self.buffers, states)
        self.chooser = backend.chooser(self.buffers["logits"], vocabulary) if vocabulary else None

    def run(self, tokens: np.ndarray) -> None:
        """tokens (S, T), checked by the caller to be rows of the embedding."""
        self.backend.upload(self.buffers["tokens"], self._flat(tokens))
        self.backend.run(self._recorded)

    def choose(self, tokens: np.ndarray, request: np.ndarray) -> int | None:
        """The same, and what the backend chooses to follow; None where the host must choose from `logits`."""
        return self.backend.choose(self._recorded, self.chooser, self.buffers["tokens"], self._flat(tokens), request)

    def _flat(self, tokens: np.ndarray) -> np.ndarray:
        assert tokens.shape == (self.program.sequences, self.program.tokens), f"tokens of shape {tokens.shape}"
        return np.ascontiguousarray(tokens, np.int32).reshape(-1)

    def logits(self) -> np.ndarray:
        """f32 (S, V) or (S * T, V), the padded vocabulary included; the program must compute them."""
        return self.backend.download(self.buffers["logits"])
