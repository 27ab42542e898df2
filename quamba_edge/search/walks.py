"""Assignments that need no search: greedy from sensitivities, and the first, the last or random places made better while the budget lasts.

They are what a search starts from, and what it must beat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from quamba_edge.search.budget import Budget, Costs
from quamba_edge.search.space import ENDS, Assignment, Space

Fits = Callable[[Assignment], bool]
Singles = Mapping[
    tuple[str, str], float
]  # (place, choice) → KL where only that place has another choice than the first


def fits(limits: Sequence[tuple[Costs, Budget]]) -> Fits:
    """Whether an assignment is within all budgets."""
    return lambda given: all(costs.of(given) <= budget.most * (1 + 1e-9) for costs, budget in limits)


def singles(space: Space, kl: Callable[[Assignment], float]) -> dict[tuple[str, str], float]:
    """The sensitivities that greedy is made of: of every place and choice the KL when it alone leaves the first choices."""
    base = space.uniform()
    return {
        (place, choice): kl({**base, place: choice})
        for place, choices in space.places.items()
        for choice in choices
        if choice != base[place]
    }


def greedy(space: Space, costs: Costs, base_kl: float, single: Singles, within: Fits) -> list[Assignment]:
    """From the first choices on, always the change that gains most for what it costs more; every step of the way.

    Gains are those measured one at a time, taken to add up.  What costs nothing more comes first, what gains nothing never.
    """
    gain = {key: base_kl - kl for key, kl in single.items()}
    at = space.uniform()
    path = [at]

    def worth(place: str, choice: str) -> tuple[float, float]:
        """(gain for the cost, gain) of the change from what the place has now."""
        more = costs.of_choice(place, choice) - costs.of_choice(place, at[place])
        gained = gain.get((place, choice), 0.0) - gain.get((place, at[place]), 0.0)
        return (gained / more if more > 0 else np.inf, gained)

    while True:
        changes = [
            (*worth(place, choice), place, choice)
            for place, choices in space.places.items()
            for choice in choices
            if choice != at[place] and within({**at, place: choice})
        ]
        changes = [c for c in changes if c[1] > 0]
        if not changes:
            return path
        _, _, place, choice = max(changes, key=lambda c: c[:2])
        at = {**at, place: choice}
        path.append(at)


def filled(space: Space, order: Sequence[str], within: Fits) -> Assignment:
    """Places in this order get their last choice, or the last of theirs that the budget still allows."""
    at = space.uniform()
    for place in order:
        for choice in reversed(space.places[place]):
            if within({**at, place: choice}):
                at = {**at, place: choice}
                break
    return at


def first(space: Space, within: Fits) -> Assignment:
    return filled(space, _layers(space), within)


def last(space: Space, within: Fits) -> Assignment:
    return filled(space, _layers(space)[::-1], within)


def drawn(space: Space, within: Fits, generator: np.random.Generator) -> Assignment:
    """Random layers, as many as the budget allows."""
    return filled(space, list(generator.permutation(_layers(space))), within)


def _layers(space: Space) -> list[str]:
    return [place for place in space.places if place != ENDS]
