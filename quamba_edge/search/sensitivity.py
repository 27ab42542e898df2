"""What each part of a model loses by each choice, alone: everything else stays as the source has it, in 16 bits.

Forward only.  The last columns say what a state of fewer bits loses, in one layer at a time, with f32 states elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quamba_edge.search.objective import Measure, Objective
from quamba_edge.search.space import ENDS, Space
from quamba_edge.search.store import FIXED

CHOICES = ("w4a8", "w4a16", "w8a8", "w8a16")
STATES = ("i8", "f16")
ENDS_CHOICES = ("w4a8", "w8a8", "w8a16")


@dataclass(frozen=True)
class Row:
    """KL in nats a token where `place` alone has `choice`; stderr over windows.  place "all": the whole model has it."""

    place: str
    choice: str
    kl: float
    stderr: float


@dataclass(frozen=True)
class Sensitivity:
    """floor is the KL of the model with nothing quantized: what f16 and rounding to it lose."""

    checkpoint: str
    layers: int
    positions: int
    windows: int
    backend: str
    state_dtype: str
    floor: Measure
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def sensitivity(
    objective: Objective,
    space: Space,
    checkpoint: str,
    *,
    states: Sequence[str] = STATES,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Sensitivity:
    """Measure every place and choice of a space whose uniform 16-bit form is in the store too."""
    fixed = space.uniform(FIXED, FIXED)
    tied = next(iter(objective.store.bundles.values())).config.tie_embeddings
    jobs: list[tuple[str, str, Callable[[], Measure]]] = []

    def add(place: str, choice: str, given: dict[str, str]) -> None:
        jobs.append((place, choice, lambda: objective.measure({**fixed, **given})))

    for choice in space.choices:
        add("all", choice, {p: choice for p in fixed if p != ENDS})
        for i in range(space.n_layer):
            add(f"layers.{i}", choice, {f"layers.{i}": choice})
    for mode in space.ends:
        add(ENDS, mode, {ENDS: mode})
        for part in () if tied else ("embedding", "head"):
            jobs.append((part, mode, lambda part=part, mode=mode: objective.measure(fixed, {part: mode})))  # type: ignore[misc]
    for dtype in states:
        for i in range(space.n_layer):
            jobs.append(
                (f"layers.{i}", f"state {dtype}", lambda i=i, dtype=dtype: objective.with_layer_state(fixed, i, dtype))  # type: ignore[misc]
            )
    floor, rows = objective.measure(fixed), []
    for done, (place, choice, measure) in enumerate(jobs):
        progress(done, len(jobs), f"{place} {choice}")
        found = measure()
        rows.append(Row(place, choice, found.kl, found.stderr))
    T, L = objective.store.source.tokens.shape
    return Sensitivity(
        checkpoint, space.n_layer, T * L, T, objective.backend.name, objective.state_dtype, floor, tuple(rows)
    )


def table(found: Sensitivity) -> str:
    """For people: a line a layer, a column a choice; thousandths of a nat."""
    choices = list(dict.fromkeys(r.choice for r in found.rows if r.place.startswith("layers")))
    by = {(r.place, r.choice): r for r in found.rows}
    head = f"{found.checkpoint}: KL from the source in thousandths of a nat a token, of one part alone quantized"
    told = f"{found.positions} positions in {found.windows} windows, {found.backend} backend; nothing quantized: {1e3 * found.floor.kl:.4f}"
    lines = [head, told, "", f"{'':10s}" + "".join(f"{c:>12s}" for c in choices)]
    for place in [*(f"layers.{i}" for i in range(found.layers)), "all"]:
        cells = (by.get((place, c)) for c in choices)
        lines.append(f"{place:10s}" + "".join(f"{1e3 * r.kl:12.4f}" if r else f"{'':12s}" for r in cells))
    for place in dict.fromkeys(r.place for r in found.rows if r.place in (ENDS, "embedding", "head")):
        said = ", ".join(f"{r.choice} {1e3 * r.kl:.4f}" for r in found.rows if r.place == place)
        lines.append(f"{place:10s}   {said}")
    lines += [
        "ends: embedding and head; all: every layer, the ends and states in 16 bits",
    ]
    return "\n".join(lines)
