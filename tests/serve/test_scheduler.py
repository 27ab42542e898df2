"""Fairness without an engine: clients take turns, their jobs take turns, nobody is forgotten, limits hold."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quamba_edge.serve.scheduler import Overloaded, Scheduler, Turns


@dataclass(eq=False)
class Job:
    client: str
    name: int = 0


def turns_of(jobs):
    turns = Turns()
    for job in jobs:
        turns.add(job)
    return turns


def test_clients_take_turns_and_their_jobs_among_themselves():
    greedy, modest = [Job("a", i) for i in range(3)], Job("b")
    turns = turns_of([*greedy, modest])
    order = [turns.next() for _ in range(8)]
    assert [j.client for j in order] == list("abababab")
    assert [j.name for j in order if j.client == "a"] == [0, 1, 2, 0]


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=20), st.integers(1, 60))
def test_no_client_is_ever_two_turns_ahead(clients, rounds):
    turns = turns_of([Job(c, i) for i, c in enumerate(clients)])
    counts = dict.fromkeys(clients, 0)
    jobs = dict.fromkeys(range(len(clients)), 0)
    for _ in range(rounds):
        job = turns.next()
        counts[job.client] += 1
        jobs[job.name] += 1
        assert max(counts.values()) - min(counts.values()) <= 1
        mine = [jobs[i] for i, c in enumerate(clients) if c == job.client]
        assert max(mine) - min(mine) <= 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["submit", "turn", "end", "admit"])), max_size=60))
def test_any_order_of_events_keeps_the_limits_and_loses_nobody(events):
    scheduler, known, refused = Scheduler(2, 3), set(), 0
    for client, event in events:
        if event == "submit":
            job = Job(client)
            try:
                scheduler.submit(job)
                known.add(job)
            except Overloaded:
                refused += 1
                assert len(scheduler.waiting) >= 3
        elif event == "admit":
            scheduler.admit()
            assert len(scheduler.running) == min(2, len(known))
        elif event == "turn":
            job = scheduler.turn()
            assert (job is None) == (len(scheduler.running) == 0) and (job is None or job in known)
        elif scheduler.jobs():
            job = scheduler.jobs()[0]
            scheduler.remove(job)
            known.remove(job)
        assert set(scheduler.jobs()) == known and len(scheduler.running) <= 2
        assert len(scheduler.waiting) <= 3 + 2 - len(scheduler.running)


def test_waiting_clients_come_in_turn_too():
    scheduler = Scheduler(1, 10)
    for client in "aaab":
        scheduler.submit(Job(client))
    assert [scheduler.admit()[0].client] == ["a"]
    scheduler.remove(scheduler.turn())
    assert scheduler.admit()[0].client == "b"  # before a's second, which came earlier


def test_a_full_queue_says_what_to_do():
    scheduler = Scheduler(1, 1)
    scheduler.submit(Job("a"))
    scheduler.submit(Job("a"))
    with pytest.raises(Overloaded, match="--max-queue"):
        scheduler.submit(Job("b"))


def test_removing_a_job_that_is_gone_is_nothing():
    scheduler = Scheduler(1, 1)
    scheduler.remove(Job("a"))
    assert scheduler.turn() is None and scheduler.admit() == []
