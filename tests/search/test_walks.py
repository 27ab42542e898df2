"""Greedy, first, last and random, on a space whose KL is known."""

import itertools

import numpy as np
import pytest

from quamba_edge.search import walks
from quamba_edge.search.budget import Budget, Costs
from quamba_edge.search.space import Choice, Space
from tests.search import fakes


def a16(given):
    return {int(p[7:]) for p, c in given.items() if p != "ends" and Choice.parse(c).act == 16}


def test_first_last_and_random_spend_the_budget():
    plan = fakes.plan(6, most=2)
    assert a16(walks.first(plan.space, plan.within)) == {0, 1}
    assert a16(walks.last(plan.space, plan.within)) == {4, 5}
    drawn = [a16(walks.drawn(plan.space, plan.within, np.random.default_rng(s))) for s in range(20)]
    assert {len(d) for d in drawn} == {2} and len(set(map(tuple, map(sorted, drawn)))) > 5


def test_greedy_takes_the_most_sensitive_layers_in_turn():
    plan = fakes.plan(3, most=3)
    of = plan.limits[0][0]
    path = walks.greedy(
        plan.space, of, fakes.kl(plan.space.uniform()), walks.singles(plan.space, fakes.kl), plan.within
    )
    assert [a16(p) for p in path] == [set(), {1}, {1, 2}, {0, 1, 2}]


def test_greedy_weighs_gain_by_cost_and_stops_at_the_budget():
    space = Space("mamba2", 2, True, ("w4a8", "w8a8", "w8a16"), ("w8a8",))
    of = Costs("bytes", 100.0, {"w4a8": 0.0, "w8a8": 10.0, "w8a16": 30.0}, {"w8a8": 0.0})
    gains = {"layers.0": {"w4a8": 0, "w8a8": 2, "w8a16": 3}, "layers.1": {"w4a8": 0, "w8a8": 1, "w8a16": 9}}
    kl = lambda given: 20 - sum(gains[p][c] for p, c in given.items() if p in gains)
    single = walks.singles(space, kl)
    path = walks.greedy(space, of, kl(space.uniform()), single, walks.fits([(of, Budget("bytes", 140.0))]))
    assert [(p["layers.0"], p["layers.1"]) for p in path] == [("w4a8", "w4a8"), ("w4a8", "w8a16"), ("w8a8", "w8a16")]


@pytest.mark.parametrize("most", range(4))
def test_nothing_beyond_a_budget(most):
    plan = fakes.plan(4, most=most)
    for choices in itertools.product(plan.space.choices, repeat=4):
        given = {**{f"layers.{i}": c for i, c in enumerate(choices)}, "ends": "w8a8"}
        assert plan.within(given) == (len(a16(given)) <= most)
