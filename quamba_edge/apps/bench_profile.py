"""`quamba-edge bench --profile`: which op of which layer takes how long, and how near it is to what the machine allows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import BadUsage
from quamba_edge.profile import ops
from quamba_edge.profile.ops import Ceilings, Profile, Spent
from quamba_edge.runtime.engine import CHUNKS, Engine

SLOW_LAYERS = 5  # shown; the rest is in the JSON


@dataclass(frozen=True)
class Profiles:
    bundle: str
    digest: str
    backend: str
    threads: int | None
    instruction_set: str | None
    state_dtype: str
    ceilings: Ceilings | None
    profiles: tuple[Profile, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def profile(
    path: Path,
    *,
    backend: str = "auto",
    state_dtype: str = "f16",
    threads: int | None = None,
    batch: int = 1,
    tokens: Sequence[int] = (1, CHUNKS[0]),
    trace: Path | None = None,
) -> Profiles:
    """A decode step and a chunk of prompt.  trace: write Chrome's trace events there.

    Errors: BadUsage for numbers under 1, BadBundle and its kinds, Missing for a backend that cannot be profiled.
    """
    if min(batch, *tokens) < 1:
        raise BadUsage(f"--batch {batch} and {min(tokens)} tokens: expected 1 or more of each")
    with Bundle.open(path) as bundle:
        engine = Engine(bundle, backend, state_dtype, threads)
        before = ops.ceilings(engine.backend)
        timed = [ops.timed(engine, n, batch) for n in tokens]
        of = ops.better(before, ops.ceilings(engine.backend))
        found = Profiles(
            str(path),
            bundle.digest,
            engine.backend.name,
            getattr(engine.backend, "threads", None),
            getattr(engine.backend, "instruction_set", None),
            state_dtype,
            of,
            tuple(ops.profile(t, of) for t in timed),
        )
    if trace is not None:
        trace.write_text(json.dumps(ops.trace(found.profiles)))
    return found


def text(p: Profiles) -> str:
    """A table of the ops of each program, the longest first, and the slowest layers."""
    words = ", ".join(str(w) for w in (p.instruction_set, f"{p.threads} threads" if p.threads else None) if w)
    lines = [f"{p.bundle}  {p.backend} backend{f' ({words})' if words else ''}, state {p.state_dtype}"]
    if p.ceilings:
        c = p.ceilings
        rates = f"{c.dots / 1e9:.0f} G int8 and {c.fmas / 1e9:.0f} G float multiply-adds a second"
        lines.append(f"reads {c.bandwidth / 1e9:.1f} GB/s, at most {rates}; % is of what they allow")
    for one in p.profiles:
        head = f"{one.batch} x {one.tokens} tokens a step: {one.tokens_per_s:.1f} tokens/s, {one.gbps:.1f} GB/s"
        lines += ["", f"{head} ({one.seconds * 1e3:.3f} ms; {one.timed_seconds * 1e3:.3f} with a clock at each op)"]
        lines.append(f"{'op':26s} {'steps':>5s} {'us each':>9s} {'share':>6s} {'MB':>8s} {'GB/s':>7s} {'%':>5s}")
        lines += [_row(kind) for kind in one.kinds]
        lines.append(f"{'the slowest layers':26s}")
        lines += [_row(layer) for layer in one.layers[:SLOW_LAYERS]]
    return "\n".join(lines)


def _row(s: Spent) -> str:
    percent = f"{s.percent:5.0f}" if s.percent is not None else f"{'-':>5s}"
    each = 1e6 * s.seconds / s.steps
    return f"{s.name:26s} {s.steps:5d} {each:9.2f} {s.share:6.1%} {s.bytes / 1e6:8.3f} {s.gbps:7.1f} {percent}"
