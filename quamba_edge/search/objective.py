"""How far an assignment is from the source: KL divergence of its next-token distribution, in nats a token, on the store's windows.

A trial costs one forward pass on the runtime's own engine, so what is measured is the arithmetic that will run, kernels included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from quamba_edge.backends import open_backend
from quamba_edge.errors import BadUsage
from quamba_edge.runtime.engine import Engine, chunks
from quamba_edge.runtime.tokenizer import Tokenizer
from quamba_edge.search.source import Source
from quamba_edge.search.space import Assignment
from quamba_edge.search.store import Store
from quamba_edge.tasks import run
from quamba_edge.tasks.reader import BundleReader

LOGITS_BYTES = 64 << 20  # of one chunk of all sequences that advance together
SEQUENCES = 8


@dataclass(frozen=True)
class Measure:
    """kl is the mean over all positions; stderr that of the mean over windows, which are what differs between texts."""

    kl: float
    stderr: float


@dataclass
class Objective:
    """Measures assignments of a store on one backend.  state_dtype as the engine takes it; tasks are asked too where there are any."""

    store: Store
    backend: Any = "auto"
    state_dtype: str = "f16"
    threads: int | None = None
    tasks: Sequence[run.Asked] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if isinstance(self.backend, str):
            self.backend = open_backend(self.backend, self.threads)

    def engine(self, bundle: Any) -> Engine:
        return Engine(bundle, self.backend, self.state_dtype)

    def measure(self, given: Assignment, ends: Mapping[str, str] | None = None) -> Measure:
        """`ends` as Store.mix takes them."""
        return mean(divergences(self.engine(self.store.mix(given, ends)), self.store.source))

    def kl(self, given: Assignment) -> float:
        return self.measure(given).kl

    def accuracy(self, given: Assignment) -> float:
        """Mean accuracy over the tasks."""
        mix = self.store.mix(given)
        tokenizer = next(iter(self.store.bundles.values())).tokenizer_json()
        known = mix.manifest.tokenizer
        reader = BundleReader(self.engine(mix))
        target = run.Target(reader, Tokenizer(tokenizer), known.get("bos"), frozenset(known["eos"]))
        return float(np.mean([run.answer(target, asked)["acc"] for asked in self.tasks]))

    def with_layer_state(self, given: Assignment, layer: int, dtype: str) -> Measure:
        """The assignment with f32 states but in one layer, whose SSM state is kept as `dtype`."""
        engine = Engine(self.store.mix(given), self.backend, "f32")
        name = f"layers.{layer}.ssm"
        engine.specs = tuple(replace(s, dtype=dtype if s.name == name else "f32") for s in engine.specs)
        return mean(divergences(engine, self.store.source))


def asked(tasks: str | None, data: Path | None, limit: int | None) -> tuple[run.Asked, ...]:
    """The questions of `--tasks A,B --data DIR`."""
    if tasks is None:
        if data is not None or limit is not None:
            raise BadUsage("--data and --limit are for --tasks: name some, or leave them out")
        return ()
    if data is None:
        raise BadUsage("--tasks needs --data DIR, the folder with the tasks' files; docs/evaluation.md lists them")
    return tuple(run.ask(name, data, limit=limit) for name in tasks.split(","))


def divergences(engine: Engine, source: Source) -> np.ndarray:
    """Mean nats a token of every window (T,).  inf where the model's logits are not finite."""
    T, L = source.tokens.shape
    rows = engine.manifest.sites["head"]["N"]
    sizes = chunks(L)
    at_once = max(1, min(SEQUENCES, T, LOGITS_BYTES // (4 * rows * sizes[0])))
    found = np.zeros(T)
    for a in range(0, T, at_once):
        ids = engine.checked(source.tokens[a : a + at_once])
        S, start = len(ids), 0
        slot = engine.slot(S)
        slot.release()
        slot.state.write(None)
        for size in sizes:
            plan = engine.plan(S, size, "all")
            plan.run(ids[:, start : start + size])
            logits = plan.logits().reshape(S, size, -1)[..., : engine.vocab_size]
            for s in range(S):
                at = (a + s) * L + start
                found[a + s] += source.divergence(slice(at, at + size), logits[s]).sum()
            start += size
    return np.where(np.isfinite(found), found / L, math.inf)


def mean(of_windows: np.ndarray) -> Measure:
    count = len(of_windows)
    if not np.isfinite(of_windows).all():
        return Measure(math.inf, math.inf)
    spread = float(of_windows.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Measure(float(of_windows.mean()), spread)
