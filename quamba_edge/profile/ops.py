"""Where the time of a step goes: each op timed where it stands in the model, beside what the machine's ceilings allow.

A backend that can be profiled has `times(recorded)`: run once, and the seconds of each step.  Ceilings come from its module's
`read_bandwidth(threads)` and `peak(instruction_set)`, or from its own `ceilings()`; without them there are bytes and times, and no percentages.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import numpy as np

from quamba_edge.backends.base import Backend
from quamba_edge.errors import Missing
from quamba_edge.ops.program import Program, Step
from quamba_edge.profile.costs import Cost, cost_of
from quamba_edge.runtime.engine import Engine
from quamba_edge.runtime.plan import Arena

MOST, LEAST, SECONDS = 200, 3, 3.0  # repeats, and how long they may take


@dataclass(frozen=True)
class Ceilings:
    """Bytes and multiply-adds (int8, float) a second of all threads together."""

    bandwidth: float
    dots: float
    fmas: float


@dataclass(frozen=True)
class Spent:
    """One step of the program, or several added up: `name` is the op and its place, `layer` None for what is in no layer.

    percent: of the least time that the ceilings allow; more than 100 where weights came from a cache.  None without ceilings.
    """

    name: str
    layer: int | None
    steps: int
    seconds: float
    share: float
    bytes: int
    multiply_adds: int
    gbps: float
    percent: float | None


@dataclass(frozen=True)
class Profile:
    """A program of `batch` sequences by `tokens`: `seconds` is the median run without a clock inside, `ops` every step in its order."""

    bundle: str
    backend: str
    batch: int
    tokens: int
    repeats: int
    seconds: float
    timed_seconds: float
    tokens_per_s: float
    gbps: float
    ceilings: Ceilings | None
    ops: tuple[Spent, ...]
    kinds: tuple[Spent, ...]
    layers: tuple[Spent, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def better(a: Ceilings | None, b: Ceilings | None) -> Ceilings | None:
    """The larger of each, of two measurements: what disturbs one can only make it smaller."""
    if a is None or b is None:
        return a or b
    return Ceilings(max(a.bandwidth, b.bandwidth), max(a.dots, b.dots), max(a.fmas, b.fmas))


def ceilings(backend: Backend) -> Ceilings | None:
    """What the machine allows the backend; None where it has no measure of that."""
    own = getattr(backend, "ceilings", None)
    if own is not None:
        return Ceilings(*own())
    module = import_module(f"quamba_edge.backends.{backend.name}")
    threads, chosen = getattr(backend, "threads", None), getattr(backend, "instruction_set", None)
    if threads is None or chosen is None or not hasattr(module, "read_bandwidth") or not hasattr(module, "peak"):
        return None
    dots, fmas = module.peak(chosen)
    return Ceilings(module.read_bandwidth(threads), threads * dots, threads * fmas)


@dataclass(frozen=True)
class Timed:
    """A program's median times, before anything is said of them: of each step, and of whole runs without a clock inside."""

    engine: Engine
    program: Program
    seconds: np.ndarray
    whole: float
    repeats: int


def timed(engine: Engine, tokens: int, batch: int = 1) -> Timed:
    """Time every op of a program of that many tokens.  Missing for a backend that cannot."""
    backend, times = engine.backend, getattr(engine.backend, "times", None)
    if times is None:
        raise Missing(f"the {backend.name} backend cannot time single ops: use --backend cpu or reference")
    program = engine.program(batch, tokens, "last")
    buffers = Arena(backend, [program]).bind(program)
    recorded = backend.record(program, engine.bundle, buffers, engine.slot(batch).state.blocks)

    def once() -> float:
        backend.run(recorded)
        backend.sync()
        return backend.elapsed()

    once()
    whole = _repeated(once)
    each = np.median(_repeated(lambda: times(recorded)), axis=0)
    return Timed(engine, program, each, float(np.median(whole)), len(whole))


def profile(of_program: Timed, of: Ceilings | None) -> Profile:
    """What the times mean beside the ceilings."""
    engine, program, each = of_program.engine, of_program.program, of_program.seconds
    costs = [cost_of(step, engine.manifest, engine.state_dtype) for step in program.steps]
    ops = [_spent(*row, each.sum(), of) for row in zip(program.steps, each.tolist(), costs, strict=True)]
    return Profile(
        bundle=str(getattr(engine.bundle, "path", "")),
        backend=engine.backend.name,
        batch=program.sequences,
        tokens=program.tokens,
        repeats=of_program.repeats,
        seconds=of_program.whole,
        timed_seconds=float(each.sum()),
        tokens_per_s=program.sequences * program.tokens / of_program.whole,
        gbps=sum(c.memory for c in costs) / of_program.whole / 1e9,
        ceilings=of,
        ops=tuple(ops),
        kinds=_added(ops, costs, of, lambda s: s.name),
        layers=_added(ops, costs, of, lambda s: "ends" if s.layer is None else f"layer {s.layer}"),
    )


def _repeated(call: Callable[[], Any]) -> list[Any]:
    began = time.monotonic()
    out: list[Any] = []
    while len(out) < LEAST or (len(out) < MOST and time.monotonic() - began < SECONDS):
        out.append(call())
    return out


def _spent(step: Step, seconds: float, cost: Cost, whole: float, of: Ceilings | None) -> Spent:
    found = re.match(r"layers\.(\d+)\.", step.site)
    place = step.site.split(".")[-1] if step.op.name.startswith("linear") else ""
    return _row(f"{step.op.name} {place}".strip(), int(found[1]) if found else None, 1, seconds, cost, whole, of)


def _row(
    name: str, layer: int | None, steps: int, seconds: float, cost: Cost, whole: float, of: Ceilings | None
) -> Spent:
    spent = max(seconds, 1e-12)  # a clock's tick may be longer than a norm of a tiny model
    least = cost.seconds(of.bandwidth, of.dots, of.fmas) if of else None
    return Spent(
        name,
        layer,
        steps,
        seconds,
        seconds / max(whole, 1e-12),
        cost.memory,
        cost.dots + cost.fmas,
        cost.memory / spent / 1e9,
        100 * least / spent if least is not None else None,
    )


def _added(
    ops: Sequence[Spent], costs: Sequence[Cost], of: Ceilings | None, key: Callable[[Spent], str]
) -> tuple[Spent, ...]:
    """Rows added up by `key`, the longest first.  The least time of a sum is that of its parts one after the other."""
    groups: dict[str, list[int]] = {}
    for i, op in enumerate(ops):
        groups.setdefault(key(op), []).append(i)
    whole, rows = sum(op.seconds for op in ops), []
    for name, where in groups.items():
        seconds = sum(ops[i].seconds for i in where)
        row = _row(name, None, len(where), seconds, sum((costs[i] for i in where), Cost()), whole, None)
        least = sum(costs[i].seconds(of.bandwidth, of.dots, of.fmas) for i in where) if of else None
        percent = 100 * least / max(seconds, 1e-12) if least is not None else None
        layer = ops[where[0]].layer if len({ops[i].layer for i in where}) == 1 else None
        rows.append(Spent(**{**asdict(row), "percent": percent, "layer": layer}))
    return tuple(sorted(rows, key=lambda r: -r.seconds))


def trace(profiles: Sequence[Profile]) -> dict[str, Any]:
    """The profiles as Chrome's trace events (chrome://tracing, ui.perfetto.dev), microseconds.

    A process for each program, a row of layers above a row of ops, laid end to end in the program's order with their median times.
    """
    events: list[dict[str, Any]] = []
    for pid, p in enumerate(profiles):
        title = f"{p.batch} x {p.tokens} tokens, {p.backend}"
        events.append({"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": title}})
        events += [
            {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}
            for tid, name in ((0, "layers"), (1, "ops"))
        ]
        at, begun = 0.0, 0.0
        for i, op in enumerate(p.ops):
            spent = 1e6 * op.seconds
            args = {"bytes": op.bytes, "multiply_adds": op.multiply_adds, "GB/s": op.gbps, "percent": op.percent}
            events.append({"ph": "X", "name": op.name, "pid": pid, "tid": 1, "ts": at, "dur": spent, "args": args})
            at += spent
            if i + 1 == len(p.ops) or p.ops[i + 1].layer != op.layer:
                name = "ends" if op.layer is None else f"layer {op.layer}"
                events.append(
                    {"ph": "X", "name": name, "pid": pid, "tid": 0, "ts": begun, "dur": at - begun, "args": {}}
                )
                begun = at
    return {"traceEvents": events, "displayTimeUnit": "ns"}
