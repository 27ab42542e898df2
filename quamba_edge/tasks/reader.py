"""What reads tokens for the scorer: S sequences of equal length go on together, from a state each, to a state each.

A chunk's size never depends on what else is read, so neither does a score, but for the rounding of sums in another order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from quamba_edge.runtime.engine import CHUNKS, Engine, chunks
from quamba_edge.runtime.state import State, state_bytes

BLOCK = CHUNKS[
    0
]  # tokens: texts are cut at multiples of it first, so two that begin alike can share that beginning's state
BATCHES = (8, 4, 2, 1)  # sequences; each is a recorded plan with memory of its own, and any group is a sum of them
LOGITS_BYTES = 256 << 20  # of one chunk's logits
STATES_BYTES = 512 << 20  # of states that wait on the host


class Reader(ABC):
    """A model that reads.

    vocab_size  ids that may be predicted
    state_bytes of one sequence
    sizes       numbers of sequences that may go on together, largest first, memory allowing
    """

    name: str
    vocab_size: int
    state_bytes: int = 0
    sizes: tuple[int, ...] = BATCHES

    @property
    def batches(self) -> tuple[int, ...]:
        """How many sequences may go on together, largest first."""
        each = max(4 * BLOCK * self.vocab_size, self.state_bytes)
        return tuple(n for n in self.sizes if n == 1 or n * each <= LOGITS_BYTES)

    @property
    def room(self) -> int:
        """States that may wait at a time."""
        return max(self.batches[0], STATES_BYTES // max(1, self.state_bytes))

    def read(self, ids: np.ndarray, before: Sequence[Any] | None) -> tuple[list[Any], np.ndarray]:
        """Consume ids (S, T), T >= 1, from the states `before` (None: from the start) → S states, logits (S, V) of what follows."""
        self.begin(len(ids), before)
        logits = np.empty(0)
        sizes = self.chunks(ids.shape[1])
        for i, (start, size) in enumerate(_starts(sizes)):
            logits = self.step(ids[:, start : start + size], "last" if i == len(sizes) - 1 else "none")
        return self.end(len(ids)), logits[:, -1]

    def follow(self, ids: np.ndarray, before: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Of ids (S, T), T >= 2, after the states `before`: log p (S, T - 1) of each but the first, and whether it is the likeliest."""
        S, T = ids.shape
        self.begin(S, before)
        chances, likeliest = np.empty((S, T - 1)), np.empty((S, T - 1), bool)
        # The last token's own prediction is not asked for: reading it too is worth it where that makes fewer chunks.
        for start, size in _starts(min(self.chunks(T - 1), self.chunks(T), key=len)):
            logits = self.step(ids[:, start : start + size], "all")
            stop = min(start + size, T - 1)
            for s in range(S):
                found = log_chances(logits[s, : stop - start], ids[s, start + 1 : stop + 1])
                chances[s, start:stop], likeliest[s, start:stop] = found
        return chances, likeliest

    def chunks(self, count: int) -> list[int]:
        """Sizes that `count` tokens are read in."""
        return chunks(count)

    @abstractmethod
    def begin(self, sequences: int, before: Sequence[Any] | None) -> None:
        """The working state becomes that of these sequences."""

    @abstractmethod
    def step(self, ids: np.ndarray, logits: str) -> np.ndarray:
        """Consume a chunk (S, size) → logits (S, size, V) for "all", (S, 1, V) or more for "last", anything for "none"."""

    @abstractmethod
    def end(self, sequences: int) -> list[Any]:
        """The states they are in, one each."""


class BundleReader(Reader):
    """A bundle on any backend."""

    def __init__(self, engine: Engine):
        self.engine, self.name, self.vocab_size = engine, engine.backend.name, engine.vocab_size
        self.state_bytes = state_bytes(engine.specs, 1, engine.state_dtype)

    def begin(self, sequences: int, before: Sequence[State] | None) -> None:
        slot = self.engine.slot(sequences)
        slot.release()
        slot.state.write(None if before is None else _stacked(before))

    def step(self, ids: np.ndarray, logits: str) -> np.ndarray:
        S, T = ids.shape
        plan = self.engine.plan(S, T, logits)
        plan.run(self.engine.checked(ids))
        if logits == "none":
            return np.empty(0)
        found = plan.logits()
        return found.reshape(S, -1, found.shape[-1])[..., : self.vocab_size]

    def end(self, sequences: int) -> list[State]:
        whole = self.engine.slot(sequences).state.read()
        return [State({n: a[s : s + 1] for n, a in whole.arrays.items()}) for s in range(sequences)]


def _stacked(states: Sequence[State]) -> State:
    return State({n: np.concatenate([s.arrays[n] for s in states]) for n in states[0].arrays})


def log_chances(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """logits (T, V), targets (T,) → log softmax at the targets in f64, and whether a target is the (first) largest.

    One row of logits (1, V) serves all targets.  -inf where a target is not below V: a row of the vocabulary that is padding.
    """
    wide = logits.astype(np.float64)
    best = wide.argmax(axis=1)
    peak = wide.max(axis=1)
    total = np.log(np.exp(wide - peak[:, None]).sum(axis=1)) + peak
    inside = targets < wide.shape[1]
    rows = np.arange(len(targets)) if len(wide) > 1 else np.zeros(len(targets), int)
    chosen = wide[rows, np.where(inside, targets, 0)]
    return np.where(inside, chosen - total[rows], -np.inf), best[rows] == targets


def _starts(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(first token, size) of each chunk."""
    return list(zip(np.cumsum([0, *sizes[:-1]]).tolist(), sizes, strict=True))
