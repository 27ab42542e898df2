"""The whole of a search, and of a sensitivity report: store, budgets, seeds, study, winner, and what the winner is compared with."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quamba_edge.bundle.writer import replacing
from quamba_edge.errors import BadUsage
from quamba_edge.quant.walk import Progress, parameter_count
from quamba_edge.search import study, walks
from quamba_edge.search.objective import Objective, asked
from quamba_edge.search.sensitivity import CHOICES, ENDS_CHOICES, Sensitivity
from quamba_edge.search.sensitivity import sensitivity as measure_all
from quamba_edge.search.space import SETS, Assignment, Space
from quamba_edge.search.storage import open_storage
from quamba_edge.search.store import FIXED, is_small, lone, open_store
from quamba_edge.search.winner import write
from quamba_edge.search.wish import Engines, Text, Wish, budgets

RANDOM = 3  # random recipes that the winner is compared with


@dataclass(frozen=True)
class Row:
    """An assignment beside others: its KL on the search's text, the standard error over windows, its costs by kind."""

    name: str
    kl: float
    stderr: float | None
    costs: dict[str, float]
    given: Assignment


@dataclass(frozen=True)
class Found:
    """What a search found.  front: measured assignments that no other beats in score and in the first budget's cost, cheapest first.

    score is "kl" or "1 - accuracy"; `bundle` is the winner, as it was measured, and `recipe` its recipe, for `pack --recipe`;
    workers: measured trials of each process.
    """

    checkpoint: str
    bundle: str
    recipe: dict[str, Any]
    winner: Row
    baselines: tuple[Row, ...]
    front: tuple[Row, ...]
    every: tuple[Row, ...]
    budgets: dict[str, float]
    space: dict[str, Any]
    score: str
    study: str
    storage: str
    measured: int
    workers: dict[str, int]
    positions: int
    backend: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def sensitivity(
    checkpoint: Any, folder: Path, text: Text, engines: Engines, choices: str | None, progress: Progress
) -> Sensitivity:
    """Every layer and the ends in every one of `choices` (a set's name, or choices with commas), alone."""
    space = Space.of(
        checkpoint.family,
        checkpoint.config,
        is_small(checkpoint),
        ",".join(CHOICES) if choices is None else ",".join(SETS.get(choices.lower(), (choices,))),
        ",".join(ENDS_CHOICES),
    )
    modes = list(dict.fromkeys([FIXED, *space.modes()]))
    with open_store(
        folder, checkpoint, modes, (FIXED, *space.ends), calib=text.calib, draw=text.draw(), progress=progress
    ) as store:
        return measure_all(engines.objective(store), space, checkpoint.name, progress=progress)


def search(checkpoint: Any, folder: Path, text: Text, engines: Engines, wish: Wish, progress: Progress) -> Found:
    """Search, alone or with others at the same study."""
    began, draw = time.monotonic(), text.draw()
    if wish.trials < 1:
        raise BadUsage(f"--trials is {wish.trials}: expected 1 or more")
    questions = asked(wish.tasks, wish.data, wish.limit)
    if wish.study is not None:
        open_storage(wish.study)  # what is wrong with it is told before hours of packing
    space = Space.of(checkpoint.family, checkpoint.config, is_small(checkpoint), wish.recipe, wish.ends)
    limits = budgets(space, checkpoint.config, wish, engines.state_dtype)
    within = walks.fits(limits)
    with open_store(
        folder, checkpoint, space.modes(), space.ends, calib=text.calib, draw=draw, progress=progress
    ) as store:
        objective = engines.objective(store, questions)
        what = [store.job, space.to_json(), [(asdict(c), b.most) for c, b in limits], wish.tasks, wish.limit, text.seed]
        name = f"{checkpoint.name}-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]}"
        base_kl, single = sensitivities(folder, objective, space, progress)
        path = walks.greedy(space, limits[0][0], base_kl, single, within)
        generator = np.random.default_rng(text.seed)
        population = min(study.POPULATION, max(4, wish.trials // 4))
        plan = study.Plan(
            space,
            limits,
            within,
            seeds(space, path, within, population, generator),
            wish.trials,
            text.seed,
            name,
            population,
        )
        storage = str(folder / "study.journal") if wish.study is None else wish.study
        known = {tuple({**space.uniform(), place: choice}.items()): kl for (place, choice), kl in single.items()}
        known[tuple(space.uniform().items())] = base_kl

        def measure(given: Assignment) -> tuple[float, float]:
            key = tuple(given.items())
            kl = known[key] if key in known else objective.kl(given)
            return (1.0 - objective.accuracy(given), kl) if questions else (kl, kl)

        def told(count: int, best: float) -> None:
            progress(min(count, wish.trials), wish.trials, f"recipes measured, best KL {best:.6f}")

        points = study.run(study.opened(storage, plan), plan, measure, told)
        fitting = [p for p in points if within(p.given)]
        if not fitting:
            raise BadUsage("no recipe within the budget was measured: allow more --trials")
        winner = min(fitting, key=lambda p: (p.score, p.kl, p.cost, p.number))

        def row(name: str, given: Assignment) -> Row:
            m = objective.measure(given)
            return Row(name, m.kl, m.stderr, {c.kind: c.of(given) for c, _ in limits}, given)

        def point(p: study.Point) -> Row:
            costs = {c.kind: c.of(p.given) for c, _ in limits}
            return Row(f"trial {p.number}", p.kl, None, costs, {place: p.given[place] for place in space.places})

        others = {f"uniform {c}": space.uniform(c) for c in space.choices}
        others |= {"first": walks.first(space, within), "last": walks.last(space, within), "greedy": path[-1]}
        others |= {f"random {i + 1}": walks.drawn(space, within, generator) for i in range(RANDOM)}
        recipe = space.recipe(winner.given, "w4ax" if wish.recipe.lower() == "w4ax" else "searched")
        progress(wish.trials, wish.trials, "writing the winner")
        return Found(
            checkpoint=checkpoint.name,
            bundle=str(write(store, winner.given, recipe, parameter_count(checkpoint))),
            recipe=recipe.to_json(),
            winner=row("search", {p: winner.given[p] for p in space.places}),
            baselines=tuple(row(n, g) for n, g in others.items()),
            front=tuple(point(p) for p in study.front(fitting)),
            every=tuple(point(p) for p in points),
            budgets={b.kind: b.most for _, b in limits},
            space=space.to_json(),
            score="1 - accuracy" if questions else "kl",
            study=name,
            storage=storage,
            measured=len({tuple(sorted(p.given.items())) for p in points}),
            workers=study.shares(points),
            positions=store.source.tokens.size,
            backend=objective.backend.name,
            seconds=time.monotonic() - began,
        )


def sensitivities(
    folder: Path, objective: Objective, space: Space, progress: Progress
) -> tuple[float, dict[tuple[str, str], float]]:
    """KL of the first choices, and of every single change from them; kept in the folder for whoever joins or goes on."""
    what = json.dumps([space.to_json(), objective.state_dtype])
    kept = folder / f"singles-{hashlib.sha256(what.encode()).hexdigest()[:12]}.json"
    with lone(folder):
        if not kept.is_file():
            total, done = sum(len(c) - 1 for c in space.places.values()) + 1, 0

            def kl(given: Assignment) -> float:
                nonlocal done
                progress(done, total, "changes measured one at a time")
                done += 1
                return objective.kl(given)

            base = kl(space.uniform())
            rows = [[place, choice, kl] for (place, choice), kl in walks.singles(space, kl).items()]
            with replacing(kept) as f:
                f.write(json.dumps({"base": base, "singles": rows}).encode())
        found = json.loads(kept.read_text())
    return found["base"], {(p, c): kl for p, c, kl in found["singles"]}


def seeds(
    space: Space,
    path: Sequence[Assignment],
    within: walks.Fits,
    population: int,
    generator: np.random.Generator,
) -> list[Assignment]:
    """The first generation: uniform recipes that fit, evenly spaced steps of the greedy path, and random recipes that fit."""
    start = [a for a in (space.uniform(c) for c in space.choices) if within(a)]
    steps = np.unique(np.linspace(0, len(path) - 1, min(len(path), max(2, population // 2))).astype(int))
    start += [path[i] for i in steps[::-1]]
    start += [walks.drawn(space, within, generator) for _ in range(max(0, population - len(start)))]
    return list({tuple(a.items()): a for a in start if within(a)}.values())
