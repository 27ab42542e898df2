"""What is asked of a search: which text, which engine, what to choose from, and the budgets with what they are about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quamba_edge.apps.plan import place
from quamba_edge.calibrate.text import Draw
from quamba_edge.errors import BadUsage
from quamba_edge.search import budget
from quamba_edge.search.objective import Objective
from quamba_edge.search.space import Space
from quamba_edge.search.store import Store


@dataclass(frozen=True)
class Text:
    """Which windows are calibrated on, and which are measured on: `tokens` of them, `length` each."""

    calib: Path | None = None
    samples: int = 128
    length: int = 512
    tokens: int = 8192
    seed: int = 0

    def draw(self) -> Draw:
        """BadUsage for impossible numbers."""
        given = {"calib-samples": (self.samples, 1), "calib-len": (self.length, 2), "tokens": (self.tokens, 1)}
        for name, (value, least) in given.items():
            if value < least:
                raise BadUsage(f"--{name} is {value}: expected {least} or more")
        if not 0 <= self.seed < 1 << 32:
            raise BadUsage(f"--seed is {self.seed}: expected 0 to {(1 << 32) - 1}")
        return Draw(self.samples, self.length, math.ceil(self.tokens / self.length), self.seed)


@dataclass(frozen=True)
class Engines:
    """What a trial runs on."""

    backend: str = "auto"
    state_dtype: str = "f16"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.state_dtype == "auto":
            raise BadUsage(
                "--state-dtype auto is what `pack` has measured of one bundle: name f16, f32 or i8 for a search"
            )

    def objective(self, store: Store, tasks: Sequence[Any] = ()) -> Objective:
        return Objective(store, self.backend, self.state_dtype, self.threads, tasks)


@dataclass(frozen=True)
class Wish:
    """What to search: a recipe set, the ends, budgets in words, where their times come from, and what is scored besides KL."""

    budgets: tuple[str, ...]
    recipe: str = "w4ax"
    ends: str | None = None
    trials: int = 200
    study: str | None = None
    costs: tuple[Path, ...] = ()
    device: str | None = None
    watts: float | None = None
    tasks: str | None = None
    data: Path | None = None
    limit: int | None = None


def budgets(space: Space, config: Any, wish: Wish, state_dtype: str) -> list[tuple[budget.Costs, budget.Budget]]:
    """The budgets with the costs they are about; BadUsage for one that no recipe can keep."""
    wanted = [budget.Budget.parse(b) for b in wish.budgets]
    if not wanted or len({b.kind for b in wanted}) < len(wanted):
        raise BadUsage("--budget is needed, once or more, each kind once: such as a16=4, bytes=3.1MB or decode=2.5ms")
    price, watts = None, wish.watts
    if wish.device is not None:
        if wish.costs or wish.device == "here":
            raise BadUsage("--device predicts for a board of the table; what was measured is given with --costs FILE")
        fastest = max(place(wish.device, None).modes, key=lambda m: m.bandwidth)
        price, watts = budget.predicted(fastest, state_dtype), fastest.watts if watts is None else watts
    elif wish.costs:
        price = budget.measured(wish.costs)
    limits = [(budget.costs(b.kind, space, config, price, watts), b) for b in wanted]
    for of, b in limits:
        least = of.least(space.n_layer)
        if least > b.most * (1 + 1e-9):
            raise BadUsage(
                f"--budget {b.kind} allows {b.most:g} {budget.WORDS[b.kind]}, but no recipe of this search has fewer than {least:g}"
            )
    return limits
