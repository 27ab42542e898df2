"""What `make gpu-check` measures on a GPU, as plain rows; tables.py says them, check.py runs them.

python -m tests.gpu.measures load BUNDLE cuda          in a process of its own: how long loading takes, and how much memory
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quamba_edge.backends import launch, open_backend
from quamba_edge.backends.base import Backend
from quamba_edge.bundle.reader import Bundle
from quamba_edge.ops.program import Program, Step
from quamba_edge.profile.costs import cost_of
from quamba_edge.profile.memory import peak_rss, reset_peak, rss
from quamba_edge.runtime.engine import Engine
from quamba_edge.runtime.plan import Arena

REPEATS = 7


@dataclass(frozen=True)
class Kernel:
    """All launches of one kind in a step of `tokens`, run one after the other as a graph of their own: nothing of a host in it.

    us: microseconds of a launch, the median of REPEATS; nbytes: weights and states; of_copy: GB/s over those of a copy.
    """

    kernel: str
    sizes: str
    tokens: int
    launches: int
    us: float
    nbytes: int
    gbps: float
    of_copy: float
    products: float  # multiply-adds a second


def kernels(engine: Engine, tokens: int, copy_bandwidth: float) -> list[Kernel]:
    """Every kind of launch in a step; the longest in all first."""
    program = engine.program(1, tokens, "last")
    buffers, states = Arena(engine.backend, [program]).bind(program), engine.slot(1).state.blocks
    engine.backend.upload(buffers["tokens"], np.zeros(tokens, np.int32))
    kinds: dict[tuple[Any, ...], list[Step]] = {}
    for step in program.steps:
        sizes = " ".join(f"{k}={v}" for k, v in step.sizes.items() if k not in ("M", "S", "T", "G", "add", "rotate"))
        kinds.setdefault((launch.launch(step.op, step.sizes, engine.state_dtype), sizes), []).append(step)
    rows = []
    for (what, sizes), steps in kinds.items():
        part = Program(1, tokens, program.buffers, program.states, tuple(steps))
        recorded = engine.backend.record(part, engine.bundle, buffers, states)
        spent = []
        for number in range(2 + REPEATS):  # launch by launch, then as a graph for the first time, then measured
            engine.backend.run(recorded)
            engine.backend.sync()
            spent += [engine.backend.elapsed()] if number >= 2 else []
        each = max(float(np.median(spent)), 1e-9) / len(steps)
        cost = cost_of(steps[0], engine.manifest, engine.state_dtype)
        speed = cost.memory / each
        rows.append(
            Kernel(
                what.kernel,
                sizes,
                tokens,
                len(steps),
                1e6 * each,
                cost.memory,
                speed / 1e9,
                speed / copy_bandwidth,
                (cost.dots + cost.fmas) / each,
            )
        )
    return sorted(rows, key=lambda r: -r.us * r.launches)


@dataclass(frozen=True)
class Load:
    """Seconds from the file to the first logits, and host memory: with the context open, and at most while loading."""

    bytes: int
    seconds: float
    before: int
    peak: int

    @property
    def added(self) -> int:
        return max(0, self.peak - self.before)


def load(path: Path, backend: Backend) -> Load:
    """Load a bundle and run one token, with the file out of the page cache where the system lets us."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with Bundle.open(path) as bundle:
        engine = Engine(bundle, backend)
        reset_peak()
        before = rss() or 0
        began = time.perf_counter()
        plan = engine.plan(1, 1, "last")
        plan.run(np.zeros((1, 1), np.int32))
        plan.logits()
        return Load(path.stat().st_size, time.perf_counter() - began, before, peak_rss())


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] != "load":
        sys.exit(__doc__)
    print(json.dumps(asdict(load(Path(sys.argv[2]), open_backend(sys.argv[3])))))
