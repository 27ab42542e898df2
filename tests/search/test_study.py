"""The study: finds the whole front of a space small enough to measure whole, goes on after a kill, and is shared by processes."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quamba_edge.errors import BadUsage
from quamba_edge.search import study
from tests.search import fakes

REPO = Path(__file__).resolve().parents[2]


def every(plan):
    """All assignments within the budget, as (cost, KL)."""
    found = []
    for choices in itertools.product(plan.space.choices, repeat=plan.space.n_layer):
        given = {**{f"layers.{i}": c for i, c in enumerate(choices)}, "ends": "w8a8"}
        if plan.within(given):
            found.append((plan.limits[0][0].of(given), fakes.kl(given)))
    return found


def best(pairs):
    """The lowest KL at every cost that is lower than at all smaller ones."""
    out = []
    for cost in sorted({c for c, _ in pairs}):
        low = min(kl for c, kl in pairs if c <= cost)
        if not out or low < out[-1][1]:
            out.append((cost, low))
    return out


def run(plan, journal="study.journal"):
    asked = []
    measure = lambda given: asked.append(given) or (fakes.kl(given), fakes.kl(given))
    return study.run(study.opened(journal, plan), plan, measure), asked


def test_the_front_of_a_small_space_is_the_whole_front():
    plan = fakes.plan(4, most=4, trials=16)
    points, asked = run(plan)
    assert len(points) == len(asked) == 16 == len({tuple(a.items()) for a in asked})  # nothing is measured twice
    assert [(p.cost, p.score) for p in study.front(points)] == best(every(plan))


def test_a_budget_keeps_what_is_beyond_it_from_being_measured():
    plan = fakes.plan(4, most=1, trials=50)
    points, asked = run(plan)
    assert {len([c for c in a.values() if c == "w4a16"]) for a in asked} == {0, 1}
    assert len(asked) == 5  # all there are, and the search ends though more were allowed
    assert [(p.cost, p.score) for p in study.front(points)] == best(every(plan))


def test_one_process_makes_the_same_study_again_and_goes_on_with_it():
    plan = fakes.plan(6, most=3, trials=12, seeds=[fakes.space(6).uniform()])
    assert run(plan, "a")[1] == (again := run(plan, "b")[1])
    more = fakes.plan(6, most=3, trials=20, seeds=[fakes.space(6).uniform()])
    points, asked = run(more, "b")
    assert len(points) == 20 and len(asked) == 8
    assert not {tuple(a.items()) for a in asked} & {tuple(a.items()) for a in again}
    assert run(fakes.plan(6, most=3, trials=12, seed=1), "c")[1] != again


def start(journal, trials, seconds=0.05):
    code = f"from tests.search.fakes import work; work({journal!r}, {str(trials)!r}, {str(seconds)!r})"
    return subprocess.Popen([sys.executable, "-c", code], cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)})


def test_two_processes_share_one_study(tmp_path):
    journal = str(tmp_path / "shared.journal")
    both = [start(journal, 40) for _ in range(2)]
    assert [p.wait(120) for p in both] == [0, 0]
    points = study.points(study.opened(journal, fakes.plan(6, most=6)))
    shares = study.shares(points)
    assert len({tuple(p.given.items()) for p in points}) in (40, 41)  # the other may be at one when the last is told
    assert len(points) <= 46, "both measured the same too often"
    assert len(shares) == 2 and min(shares.values()) >= 5, shares  # one may have begun much later


def test_a_killed_process_loses_one_trial_and_the_study_goes_on(tmp_path):
    journal = str(tmp_path / "killed.journal")
    victim = start(journal, 60, 0.2)
    wait_for(lambda: list(tmp_path.glob("killed.journal.[0-9]*")) or victim.poll() is not None)
    time.sleep(0.3)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    plan = fakes.plan(6, most=6, trials=30, seeds=[fakes.space(6).uniform("w4a16")])
    before = len(study.points(study.opened(journal, plan)))
    assert 0 < before < 30
    points, asked = run(plan, journal)
    assert len(points) == 30 and len(asked) == 30 - before
    assert plan.seeds[0] in [p.given for p in points]
    left = study.opened(journal, plan).get_trials(deepcopy=False)
    assert [t.number for t in left if t.state.name == "RUNNING"] == []


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("where", ["no/such/folder/s.journal", "nosuchdb://host/name"])
def test_a_storage_that_cannot_be_opened_is_named(where):
    with pytest.raises(BadUsage, match=f"--study {where} cannot be opened"):
        study.opened(where, fakes.plan())


def test_a_line_that_a_kill_left_unfinished_does_not_count(tmp_path):
    plan = fakes.plan(4, most=4, trials=6)
    points, _ = run(plan, "torn")
    with open("torn", "ab") as file:
        file.write(b'{"op_code": 5, "work')
    assert [p.given for p in study.points(study.opened("torn", plan))] == [p.given for p in points]
    more = run(fakes.plan(4, most=4, trials=9), "torn")[0]
    assert len(more) == 9 and len(study.points(study.opened("torn", plan))) == 9


def test_a_database_serves_as_well_as_a_journal(tmp_path):
    plan = fakes.plan(3, most=3, trials=8)
    assert [p.score for p in study.front(run(plan, f"sqlite:///{tmp_path}/s.db")[0])] == [
        p.score for p in study.front(run(plan, "as-file")[0])
    ]
