"""What a model remembers of its sequences: convolution inputs and SSM states, of constant size however long the text.

`State` is a copy on the host, `LiveState` the blocks that a backend's plans are bound to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from quamba_edge.backends.base import STATE_DTYPES, Backend
from quamba_edge.errors import BadUsage
from quamba_edge.layouts import DTYPES
from quamba_edge.ops.program import StateSpec

# KL in nats a token, of int8 states from f32 ones, below which "auto" takes them: about what 4-bit weights cost the storytellers.
DRIFT = 0.008


def dtype_of(spec: StateSpec, chosen: str) -> str:
    """The dtype of a state array where the session's choice is `chosen` ("f32", "f16" or "i8")."""
    if chosen not in STATE_DTYPES:
        raise BadUsage(f"{chosen!r} is not a state dtype: choose from {', '.join(STATE_DTYPES)}, or auto for a bundle")
    return chosen if spec.dtype == "state" else spec.dtype


def resolved(chosen: str, manifest: Any) -> str:
    """The dtype that "auto" stands for: "i8" where the bundle's manifest says that int8 states cost it less than DRIFT, else "f16"."""
    if chosen != "auto":
        return chosen
    measured = manifest.perplexity.get("state_i8")
    return "i8" if measured and measured["kl"] < DRIFT else "f16"


@dataclass(frozen=True)
class State:
    """`arrays` by name, each with the axis of S sequences first."""

    arrays: dict[str, np.ndarray]

    @classmethod
    def zeros(cls, specs: Iterable[StateSpec], sequences: int, chosen: str) -> State:
        """The state before the first token."""
        return cls({s.name: np.zeros((sequences, *s.shape), DTYPES[dtype_of(s, chosen)]) for s in specs})

    def copy(self) -> State:
        return State({name: array.copy() for name, array in self.arrays.items()})

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


def state_bytes(specs: Iterable[StateSpec], sequences: int, chosen: str) -> int:
    """Bytes of such a state, without making it."""
    return sum(sequences * math.prod(s.shape) * np.dtype(DTYPES[dtype_of(s, chosen)]).itemsize for s in specs)


class LiveState:
    """The state of S sequences in a backend's memory."""

    def __init__(self, backend: Backend, specs: tuple[StateSpec, ...], sequences: int, chosen: str):
        self._backend, self._new = backend, (specs, sequences, chosen)
        self.blocks = {s.name: backend.alloc((sequences, *s.shape), dtype_of(s, chosen)) for s in specs}

    def read(self, spare: State | None = None) -> State:
        """A copy on the host; in the arrays of `spare`, one that nobody needs any more, if given."""
        if spare is None:
            return State({name: self._backend.download(block) for name, block in self.blocks.items()})
        for name, block in self.blocks.items():
            self._backend.download_into(block, spare.arrays[name])
        return spare

    def write(self, state: State | None) -> None:
        """Replace all of it; None is the state before the first token."""
        state = State.zeros(*self._new) if state is None else state
        found = {name: (a.shape, a.dtype) for name, a in state.arrays.items()}
        expected = {name: (b.shape, np.dtype(DTYPES[b.dtype])) for name, b in self.blocks.items()}
        if found != expected:
            names = [n for n in {**expected, **found} if found.get(n) != expected.get(n)]
            raise BadUsage(
                f"this state is not one of this model: {names[0]} is {found.get(names[0])}, expected {expected.get(names[0])}; "
                "use it with the bundle and state dtype that made it"
            )
        for name, block in self.blocks.items():
            self._backend.upload(block, state.arrays[name])
