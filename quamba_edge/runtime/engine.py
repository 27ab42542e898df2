"""Engine = bundle + backend + recorded plans; what sessions run on (runtime/session.py).

A prompt is consumed in chunks of fixed sizes, so that plans are recorded once and memory does not grow with the prompt.  Sessions of
one engine share its plans and working state: the one that runs holds it, the others' states wait on the host.  One thread at a time.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from quamba_edge import models
from quamba_edge.backends import open_backend
from quamba_edge.backends.base import Backend
from quamba_edge.errors import BadUsage
from quamba_edge.ops.program import Program
from quamba_edge.runtime.plan import Arena, Plan, arena_sizes
from quamba_edge.runtime.state import LiveState, State, dtype_of, resolved, state_bytes

CHUNKS = (128, 16, 1)  # tokens; every size is one recorded plan, and any prompt is a sum of them
LOGITS_BYTES = 256 << 20  # most memory that scoring spends on the logits of one chunk


def chunks(tokens: int) -> list[int]:
    """Chunk sizes that make up a prompt, largest first."""
    sizes = []
    for size in CHUNKS:
        sizes += [size] * (tokens // size)
        tokens %= size
    return sizes


class Holder(Protocol):
    """Who may hold the working state: a session."""

    def park(self, state: State) -> None: ...


class Slot:
    """The working state of S sequences, and the session that holds it."""

    def __init__(self, state: LiveState):
        self.state = state
        self.holder: weakref.ref[Holder] | None = None
        # What the session that runs was parked in: the next one to park takes it.  New memory costs several times the copying.
        self.spare: State | None = None

    def release(self) -> None:
        """Whoever holds it takes its state to the host."""
        holder = self.holder() if self.holder else None
        if holder is not None:
            holder.park(self.state.read(self.spare))
            self.spare = None
        self.holder = None


class Engine:
    """A bundle ready to run.

    backend      "auto", a name, or a Backend; `engine.backend.name` says which it became
    state_dtype  of the SSM states: "f16", "f32", "i8", or "auto": `engine.state_dtype` says which that became
    threads      for backends that have a choice
    progress     told (bytes, of all) while weights are copied to a GPU

    Missing where the model does not fit into the backend's memory.
    """

    def __init__(
        self,
        bundle: Any,
        backend: str | Backend = "auto",
        state_dtype: str = "f16",
        threads: int | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ):
        self.bundle, self.manifest = bundle, bundle.manifest
        self.state_dtype = state_dtype = resolved(state_dtype, bundle.manifest)
        self._family = models.find(self.manifest.family, "program")
        self.specs = self._family.program(self.manifest, 1, 1, "none").states
        for spec in self.specs:
            dtype_of(spec, state_dtype)  # a wrong choice is refused before anything is opened
        self.backend = backend if isinstance(backend, Backend) else open_backend(backend, threads)
        self._plans: dict[tuple[int, int, str], Plan] = {}
        self._arenas: dict[tuple[int, bool], Arena] = {}
        self._slots: dict[int, Slot] = {}
        self.backend.load(bundle, self._others, progress)

    def _others(self) -> dict[str, int]:
        """What one session needs beside the weights, in bytes."""
        arena = arena_sizes(self.program(1, n, "last") for n in CHUNKS)
        return {"state": state_bytes(self.specs, 1, self.state_dtype), "activations": sum(arena.values())}

    @property
    def vocab_size(self) -> int:
        """Ids that may be sampled; the matrices may have more rows."""
        return self.manifest.vocab_size

    def program(self, sequences: int, tokens: int, logits: str) -> Program:
        """The model's step, as data."""
        return self._family.program(self.manifest, sequences, tokens, logits)

    def plan(self, sequences: int, tokens: int, logits: str) -> Plan:
        """The recorded plan of a chunk; recorded on first use, bound to the working state of that many sequences."""
        key = sequences, tokens, logits
        if key not in self._plans:
            blocks = self.slot(sequences).state.blocks
            arena = self._arena(sequences, logits == "all")
            chooses = self.vocab_size if (sequences, tokens, logits) == (1, 1, "last") else None
            self._plans[key] = Plan(self.backend, self.program(*key), self.bundle, arena, blocks, chooses)
        return self._plans[key]

    def _arena(self, sequences: int, scoring: bool) -> Arena:
        """The arena of all chunk sizes, sized before anything runs."""
        if (sequences, scoring) not in self._arenas:
            logits = "all" if scoring else "last"
            self._arenas[sequences, scoring] = Arena(self.backend, [self.program(sequences, n, logits) for n in CHUNKS])
        return self._arenas[sequences, scoring]

    def slot(self, sequences: int) -> Slot:
        """The working state of that many sequences."""
        if sequences not in self._slots:
            self._slots[sequences] = Slot(LiveState(self.backend, self.specs, sequences, self.state_dtype))
        return self._slots[sequences]

    def checked(self, tokens: Iterable[int] | np.ndarray) -> np.ndarray:
        """Token ids as i32; BadUsage for one that is no row of the embedding."""
        ids = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens))
        rows = self.manifest.sites["embedding"]["N"]
        if ids.size and not np.issubdtype(ids.dtype, np.integer):
            raise BadUsage(f"token ids are integers, not {ids.dtype}")
        if ids.size and not (0 <= ids.min() and ids.max() < rows):
            raise BadUsage(
                f"token ids {ids.min()}..{ids.max()} do not fit this model, whose ids are 0..{rows - 1}: was the text made into tokens by its tokenizer?"
            )
        return ids.astype(np.int32)

    def score(self, tokens: np.ndarray) -> np.ndarray:
        """Log-probabilities f64 (S, L - 1) that the model gives each next token of tokens (S, L), from an empty state.

        Ids beyond `vocab_size` get no probability: -inf where one is the next token.
        """
        ids = self.checked(np.asarray(tokens))
        if ids.ndim != 2 or ids.shape[1] < 2:
            raise BadUsage(f"tokens to score are (sequences, length of 2 or more), not {ids.shape}")
        rows = CHUNKS[0] * 4 * self.manifest.sites["head"]["N"]
        at_once = max(1, LOGITS_BYTES // rows)
        return np.concatenate([self._score(ids[a : a + at_once]) for a in range(0, len(ids), at_once)])

    def _score(self, ids: np.ndarray) -> np.ndarray:
        S, L = ids.shape
        # The last token's own prediction is not asked for: running it too is worth it where that makes fewer chunks.
        sizes = min(chunks(L - 1), chunks(L), key=len)
        slot = self.slot(S)
        slot.release()
        slot.state.write(None)
        out, start = np.empty((S, L - 1)), 0
        for size in sizes:
            plan = self.plan(S, size, "all")
            plan.run(ids[:, start : start + size])
            count = min(size, L - 1 - start)
            logits = plan.logits().reshape(S, size, -1)[:, :count, : self.vocab_size]
            for s in range(S):
                out[s, start : start + count] = _log_probabilities(logits[s], ids[s, start + 1 : start + 1 + count])
            start += size
        return out


def _log_probabilities(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Log softmax of logits f32 (T, V) at targets (T,), in f64; -inf where a target is not below V."""
    wide = logits.astype(np.float64)
    peak = wide.max(axis=1, keepdims=True)
    total = np.log(np.exp(wide - peak).sum(axis=1)) + peak[:, 0]
    inside = targets < wide.shape[1]
    chosen = wide[np.arange(len(wide)), np.where(inside, targets, 0)]
    return np.where(inside, chosen - total, -np.inf)
