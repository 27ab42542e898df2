"""`quamba-edge sensitivity` and `quamba-edge search`: the faces of quamba_edge/search, with files written and words for people."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quamba_edge.errors import Interrupted, Missing


def sensitivity(options: Mapping[str, Any], progress: Any, command: list[str]) -> Any:
    """Measure; OUT/sensitivity.json, and OUT/sensitivity.png where matplotlib is here."""
    checkpoint, out = _open(options), Path(options["out"])
    from quamba_edge.search import run

    try:
        found = run.sensitivity(checkpoint, out, *_how(options), options["choices"], progress)
    except KeyboardInterrupt:
        raise _stopped(command) from None
    (out / "sensitivity.json").write_text(json.dumps(found.to_json(), indent=1) + "\n")
    if find_spec("matplotlib"):
        from quamba_edge.apps import search_plot

        search_plot.sensitivity(found, out / "sensitivity.png")
    return found


def search(options: Mapping[str, Any], progress: Any, command: list[str]) -> Any:
    """Search; OUT/best.qedge is the winner, OUT/recipe.json its recipe, OUT/front.json what was found, OUT/front.png its picture where
    matplotlib is here."""
    if not find_spec("optuna"):
        raise Missing("search needs optuna, which is not here: pip install 'quamba-edge[search]'")
    checkpoint, out = _open(options), Path(options["out"])
    from quamba_edge.search import run, wish

    names = "recipe ends trials study device watts tasks data limit".split()
    wanted = wish.Wish(tuple(options["budget"]), costs=tuple(options["costs"]), **{n: options[n] for n in names})
    try:
        found = run.search(checkpoint, out, *_how(options), wanted, progress)
    except KeyboardInterrupt:
        raise _stopped(command) from None
    (out / "recipe.json").write_text(json.dumps(found.recipe, indent=1) + "\n")
    (out / "front.json").write_text(json.dumps(found.to_json(), indent=1) + "\n")
    if find_spec("matplotlib"):
        from quamba_edge.apps import search_plot

        search_plot.front(found, out / "front.png")
    return found


def sensitivity_text(found: Any) -> str:
    from quamba_edge.search.sensitivity import table

    return table(found)


def search_text(found: Any) -> str:
    """The winner beside what needs no search, and where it lies."""
    from quamba_edge.search.space import written

    kinds = list(found.budgets)
    head = (
        f"{found.checkpoint}: {found.measured} recipes measured on {found.positions} positions, {found.backend} backend"
    )
    if len(found.workers) > 1:
        head += "; by " + ", ".join(f"{who} {count}" for who, count in found.workers.items())
    budgets = ", ".join(f"{kind} at most {most:g}" for kind, most in found.budgets.items())
    budgets += "" if found.score == "kl" else f"; chosen by {found.score}"
    lines = [head, f"budget: {budgets}", "", f"{'':22s}{'KL, 1/1000 nat':>16s}" + "".join(f"{k:>14s}" for k in kinds)]
    for row in sorted((found.winner, *found.baselines), key=lambda r: r.kl):
        spread = "" if row.stderr is None else f" ±{1e3 * row.stderr:.3f}"
        costs = "".join(f"{row.costs[k]:14.6g}" for k in kinds)
        beyond = any(row.costs[k] > most * (1 + 1e-9) for k, most in found.budgets.items())
        lines.append(f"{row.name:22s}{1e3 * row.kl:9.4f}{spread:>7s}{costs}{'  beyond the budget' if beyond else ''}")
    lines += [
        "",
        written(found.winner.given),
        f"run it: quamba-edge run {shlex.quote(found.bundle)}",
    ]
    return "\n".join(lines)


def _open(options: Mapping[str, Any]) -> Any:
    if not find_spec("torch"):
        raise Missing("quantizing needs torch, which is not here: pip install 'quamba-edge[pack]'")
    from quamba_edge.checkpoint import open_checkpoint

    return open_checkpoint(options["checkpoint"], tokenizer=options["tokenizer"])


def _how(options: Mapping[str, Any]) -> tuple[Any, Any]:
    """The text and the engines of both verbs."""
    from quamba_edge.search.wish import Engines, Text

    text = Text(options["calib"], options["calib_samples"], options["calib_len"], options["tokens"], options["seed"])
    return text, Engines(options["backend"], options["state_dtype"], options["threads"])


def _stopped(command: list[str]) -> Interrupted:
    return Interrupted(f"stopped; what is finished is kept, continue with: quamba-edge {shlex.join(command)}")
