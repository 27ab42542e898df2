"""The search itself: NSGA-II over the choices of all places, as an Optuna study that any number of processes may share.

Every process runs the same loop: ask, measure, tell, until the study has as many measured assignments as were asked for.  What the
loop knows is in the study's storage (a journal file, or a database by its URL), so a process can be killed and started again, and
others can join from anywhere.  Trial n draws from generators seeded by (seed, n), so that one process alone always makes the same study.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quamba_edge.search.budget import Budget, Costs
from quamba_edge.search.space import Assignment, Space
from quamba_edge.search.storage import open_storage
from quamba_edge.search.walks import Fits

POPULATION = 40  # as in Quamba2's search, which ran 5 generations of 40
IDLE = 60  # trials in a row that told nothing new, before one is made by hand
TRIES = 400  # random changes looked at to find one that was not measured yet


@dataclass(frozen=True)
class Point:
    """A measured assignment; cost is of the first budget's kind, `by` the process that measured it."""

    number: int
    score: float
    kl: float
    cost: float
    given: Assignment
    by: str


@dataclass(frozen=True)
class Plan:
    """What to search: limits are (costs, budget), the first of which is the second objective; `name` says which study it is."""

    space: Space
    limits: Sequence[tuple[Costs, Budget]]
    within: Fits
    seeds: Sequence[Assignment]
    trials: int
    seed: int
    name: str
    population: int = POPULATION


def worker() -> str:
    """The name of this process among those that share a study."""
    return f"{socket.gethostname()}:{os.getpid()}"


def opened(storage: str | Path, plan: Plan) -> Any:
    """The study, made if it is not there.  storage: a journal file, or a database URL such as postgresql://..."""
    kept = open_storage(storage)
    import optuna

    return optuna.create_study(
        storage=kept, study_name=plan.name, directions=["minimize", "minimize"], load_if_exists=True
    )


def run(study: Any, plan: Plan, measure: Callable[[Assignment], tuple[float, float]], told: Any = None) -> list[Point]:
    """Search until `plan.trials` different assignments are measured, by whomever; all points, in the order of their trials.

    measure(assignment) → (score, kl), the score being what is minimized.  told(measured, best kl) is called after each.
    """
    import optuna
    from optuna.trial import TrialState

    me = worker()
    given = {p: optuna.distributions.CategoricalDistribution(c) for p, c in plan.space.places.items()}
    study.sampler = _sampler(plan)
    _abandoned(study, plan)
    for seed in plan.seeds:
        study.enqueue_trial(seed, skip_if_exists=True)
    idle = 0
    while True:
        known = {_key(p.given): p for p in points(study)}
        if len(known) >= min(plan.trials, plan.space.size):
            break
        if idle and idle % IDLE == 0:
            fresh = _unmeasured(plan, known)
            if fresh is None:
                break  # all that the budget allows is measured, as far as many tries can tell
            study.enqueue_trial(fresh)
        trial = study.ask(given)
        trial.set_user_attr("by", me)
        at: Assignment = {place: trial.params[place] for place in plan.space.places}
        for costs, budget in plan.limits:
            trial.set_constraint(costs.kind, costs.of(at) - budget.most * (1 + 1e-9))
        cost, found = plan.limits[0][0].of(at), known.get(_key(at))
        if not plan.within(at):
            idle += 1
            study.tell(trial, [np.inf, cost])  # not measured: only how far it is beyond counts
            continue
        if found is not None:
            idle += 1
            study.tell(trial, [found.score, cost])
            continue
        idle = 0
        try:
            score, kl = measure(at)
        except BaseException:
            study.tell(trial, state=TrialState.FAIL)
            raise
        trial.set_user_attr("kl", kl)
        study.tell(trial, [score, cost])
        if told is not None:
            told(len(known) + 1, min([kl, *(p.kl for p in known.values())]))
    return points(study)


def points(study: Any) -> list[Point]:
    """What the study has measured, in the order of its trials."""
    from optuna.trial import TrialState

    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [
        Point(t.number, t.values[0], t.user_attrs["kl"], t.values[1], dict(t.params), t.user_attrs["by"])
        for t in done
        if "kl" in t.user_attrs
    ]


def front(measured: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both score and cost, cheapest first."""
    best: list[Point] = []
    for p in sorted(measured, key=lambda p: (p.cost, p.score, p.number)):
        if not best or p.score < best[-1].score:
            best.append(p)
    return best


def shares(measured: Sequence[Point]) -> dict[str, int]:
    """How many assignments each process measured."""
    return dict(Counter(p.by for p in measured))


def _key(given: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(given[p] for p in sorted(given))


def _abandoned(study: Any, plan: Plan) -> None:
    """Trials of processes of this machine that are no more: failed, and asked for again."""
    from optuna.trial import TrialState

    for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host, _, pid = t.user_attrs.get("by", "").rpartition(":")
        if host == socket.gethostname() and not Path(f"/proc/{pid}").exists():
            study.tell(t.number, state=TrialState.FAIL)
            if set(t.params) == set(plan.space.places):
                study.enqueue_trial(t.params)


def _unmeasured(plan: Plan, known: Mapping[tuple[str, ...], Point]) -> Assignment | None:
    """A random neighbour, within the budget, of a point of the front that was not measured yet."""
    best = front(list(known.values()))
    generator = np.random.default_rng((plan.seed, len(known)))
    places = [p for p, choices in plan.space.places.items() if len(choices) > 1]
    for _ in range(TRIES if best and places else 0):
        at = dict(best[generator.integers(len(best))].given)
        for place in generator.choice(places, min(len(places), int(generator.integers(1, 4))), replace=False):
            at[str(place)] = str(generator.choice(plan.space.places[str(place)]))
        if _key(at) not in known and plan.within(at):
            return at
    return None


def _sampler(plan: Plan) -> Any:
    """NSGA-II whose draws for a trial depend on the plan's seed and the trial's number alone."""
    from optuna.samplers import BaseSampler, NSGAIISampler

    class Seeded(BaseSampler):
        """A sampler made anew for every trial; NSGA-II keeps its generations in the study, not in itself."""

        def __init__(self) -> None:
            self._inner = self._for(0)

        def _for(self, number: int) -> Any:
            seed = int(np.random.SeedSequence((plan.seed, number)).generate_state(1)[0])
            return NSGAIISampler(population_size=plan.population, seed=seed)

        def before_trial(self, study: Any, trial: Any) -> None:
            self._inner = self._for(trial.number)
            self._inner.before_trial(study, trial)

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return self._inner.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return self._inner.sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return self._inner.sample_independent(study, trial, param_name, param_distribution)

        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            self._inner.after_trial(study, trial, state, values)

    return Seeded()
