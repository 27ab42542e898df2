"""Pictures of a sensitivity report and of a search, drawn with matplotlib: pip install 'quamba-edge[plot]'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = ("#2b6cb0", "#d69e2e", "#2f855a", "#c53030", "#6b46c1", "#718096", "#0987a0", "#b83280")
GREY = "#a0aec0"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def sensitivity(found: Any, path: Path) -> None:
    """KL by layer, a line for each choice; the ends at the right."""
    figure, axes = _figure(min(12.0, 6.5 + 0.15 * found.layers), 4.6)
    by = {(r.place, r.choice): r for r in found.rows}
    choices = list(dict.fromkeys(r.choice for r in found.rows if r.place.startswith("layers")))
    for colour, choice in zip(COLOURS, choices):
        rows = [by[f"layers.{i}", choice] for i in range(found.layers)]
        style = ":" if choice.startswith("state") else "-"
        error = [1e3 * r.stderr for r in rows]
        at = range(found.layers)
        axes.errorbar(
            at, [1e3 * r.kl for r in rows], error, color=colour, marker="o", ms=4, lw=1, ls=style, label=choice
        )
    ends = [r for r in found.rows if r.place == "ends"]
    apart = max(1.0, found.layers / 16)  # room for the ends' names
    spots = [found.layers - 1 + apart * (k + 1.5) for k in range(len(ends))]
    axes.plot(spots, [1e3 * row.kl for row in ends], "s", color="#1a202c", ms=5)
    axes.axhline(max(1e-6, 1e3 * found.floor.kl), color=GREY, lw=1, ls="--", label="nothing quantized")
    axes.set_yscale("log")
    step = max(1, found.layers // 16)
    names = [*(str(i) for i in range(0, found.layers, step)), *(f"ends\n{r.choice}" for r in ends)]
    axes.set_xticks([*range(0, found.layers, step), *spots], names, fontsize=8)
    axes.set_xlabel("layer that alone is quantized")
    axes.set_ylabel("KL from the source, nats / 1000")
    axes.set_title(f"{found.checkpoint}, {found.positions} positions, {found.backend} backend", fontsize=9, loc="left")
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(path)


def front(found: Any, path: Path) -> None:
    """Every measured recipe by its cost and KL, the front, and what needs no search."""
    kind = next(iter(found.budgets))
    figure, axes = _figure(7.5, 5.0)
    every = [(r.costs[kind], 1e3 * r.kl) for r in found.every]
    axes.plot(*zip(*every), ".", color=GREY, ms=5, label=f"{len(every)} recipes measured")
    best = [(r.costs[kind], 1e3 * r.kl) for r in found.front]
    axes.step(*zip(*best), where="post", color=COLOURS[0], lw=1.5, label="front")
    for colour, name in zip(COLOURS[1:], ("uniform", "first", "last", "greedy", "random")):
        rows = [r for r in found.baselines if r.name.split()[0] == name]
        axes.plot([r.costs[kind] for r in rows], [1e3 * r.kl for r in rows], "D", color=colour, ms=6, label=name)
        if name == "uniform":
            for r in rows:
                axes.annotate(r.name[8:], (r.costs[kind], 1e3 * r.kl), (4, 4), textcoords="offset points", fontsize=7)
    axes.plot([found.winner.costs[kind]], [1e3 * found.winner.kl], "*", color=COLOURS[3], ms=14, label="chosen")
    axes.axvline(found.budgets[kind], color=GREY, lw=1, ls="--")
    axes.set_xlabel(f"{kind} (dashed: the budget)")
    axes.set_ylabel("KL from the source, nats / 1000")
    axes.set_title(f"{found.checkpoint}, {found.positions} positions of the search's text", fontsize=9, loc="left")
    axes.legend(fontsize=8)
    figure.savefig(path)
