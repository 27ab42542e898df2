"""A space of few layers with a KL by formula: what a study can be tried on without a model."""

import os
import time
from pathlib import Path

from quamba_edge.search import study, walks
from quamba_edge.search.budget import Budget, Costs
from quamba_edge.search.space import Choice, Space

LOSS = (0.5, 3.0, 1.0, 0.25, 2.0, 0.125)  # of each layer with int8 inputs


def space(layers=4, choices=("w4a8", "w4a16")):
    return Space("mamba2", layers, True, tuple(choices), ("w8a8",))


def kl(given):
    """Sums, but for one pair of layers that loses more together than alone: greedy cannot know."""
    lost = {int(p[7:]): LOSS[int(p[7:])] for p, c in given.items() if p != "ends" and Choice.parse(c).act == 8}
    return sum(lost.values()) + (4.0 if {0, 3} <= set(lost) else 0.0)


def plan(layers=4, most=2, trials=16, seed=0, seeds=(), choices=("w4a8", "w4a16"), population=6):
    of = space(layers, choices)
    costs = Costs("a16", 0.0, {c: float(Choice.parse(c).act == 16) for c in choices}, {"w8a8": 0.0})
    limits = [(costs, Budget("a16", most))]
    within = walks.fits(limits)
    return study.Plan(of, limits, within, list(seeds), trials, seed, "test", population)


def work(journal: str, trials: str, seconds: str, layers: str = "6") -> None:
    """One of several processes at a study: python -c "from tests.search.fakes import work; work(...)"."""
    of = plan(int(layers), most=int(layers), trials=int(trials), seeds=[space(int(layers)).uniform("w4a16")])

    def measure(given):
        time.sleep(float(seconds))
        Path(journal + f".{os.getpid()}").touch()
        return kl(given), kl(given)

    study.run(study.opened(journal, of), of, measure)
