"""The worker: many jobs on one engine give what each would get alone, in turns, within limits, and nothing is left behind."""

import threading
import time

import numpy as np
import pytest

from quamba_edge.errors import BadUsage, DeviceLost
from quamba_edge.runtime.model import load
from quamba_edge.runtime.sampling import Sampling
from quamba_edge.serve.chances import chance
from quamba_edge.serve.engine import LONGEST, SHORTEST, Service
from quamba_edge.serve.jobs import Closing, Done, Ended, Failed, Job, Piece, Prompted, TimeUp
from quamba_edge.serve.pool import Prompt
from quamba_edge.serve.scheduler import Overloaded
from quamba_edge.serve.work import pieces

LONG = [5, 6, 7, 8, 1] * 60


def job(ids=(5, 6, 7), **more):
    return Job(**{"prompts": [Prompt(list(ids))], "max_tokens": 8, "ignore_end": True, **more})


class Heard:
    """Collects a job's events; `done` is set by the last."""

    def __init__(self, service, job, log=None):
        self.events, self.done, self.job = [], threading.Event(), job
        self.log = log if log is not None else []
        job.emit = self.hear
        service.submit(job)

    def hear(self, event):
        self.events.append(event)
        if isinstance(event, Piece):
            self.log.append(self.job.client)
        if isinstance(event, (Done, Failed)):
            self.done.set()

    def wait(self):
        assert self.done.wait(60)
        return self.events

    @property
    def tokens(self):
        return [e.step.token for e in self.wait() if isinstance(e, Piece)]


def test_pieces_are_cut_as_one_prefill_cuts_them():
    assert pieces(300) == [128, 128, 44] and pieces(128) == [128] and pieces(5) == [5] and pieces(0) == []


def test_together_they_get_what_each_gets_alone(service, make):
    asked = [dict(ids=LONG[: 20 * k], sampling=Sampling(temperature=1, seed=k), max_tokens=12) for k in range(1, 9)]
    alone = [Heard(make(), job(**a)).tokens for a in asked]
    together = [Heard(service, job(**a, client=str(i))) for i, a in enumerate(asked)]
    assert [h.tokens for h in together] == alone
    assert all(len(t) == 12 for t in alone)


def test_streams_advance_side_by_side_while_a_long_prompt_is_read(service):
    service.turn = 0.0  # a token or a piece of prompt a turn
    log = []
    first = [Heard(service, job(client=c, max_tokens=60), log) for c in "ab"]
    late = Heard(service, job(LONG * 4, client="c", max_tokens=10), log)
    for heard in (*first, late):
        heard.wait()
    begun = log.index("c")
    assert log[:begun].count("a") >= 3 and log[:begun].count("b") >= 3  # they went on while c's prompt was read
    middle = log[begun : begun + 15]
    assert abs(middle.count("a") - middle.count("c")) <= 1  # then all three in turn


def test_a_client_with_many_requests_waits_for_one_with_few(make):
    service, log = make(sessions=1), []
    service.turn = 0.0
    many = [Heard(service, job(client="many", max_tokens=20), log) for _ in range(5)]
    few = Heard(service, job(client="few", max_tokens=3), log)
    few.wait()
    assert sum(h.done.is_set() for h in many) <= 2
    for heard in many:
        heard.wait()


def test_what_is_told_in_which_order(service):
    events = list(service.stream(job(n=2, max_tokens=3, logprobs=2)))
    kinds = [type(e) for e in events]
    assert kinds == [Prompted, Piece, Piece, Piece, Ended] * 2 + [Done]
    assert [e.choice for e in events[:-1]] == [0] * 5 + [1] * 5
    assert all(len(e.chance.top) == 2 for e in events if isinstance(e, Piece))
    usage = events[-1].usage
    assert (usage.prompt, usage.reused, usage.completion) == (3, 0, 6) and usage.ttft_ms > 0


def test_answers_to_one_prompt_differ_by_seed_and_repeat(service):
    asked = dict(n=3, sampling=Sampling(temperature=1, seed=3), max_tokens=10)

    def answers():
        out = {}
        for event in service.stream(job(**asked)):
            if isinstance(event, Piece):
                out.setdefault(event.choice, []).append(event.step.token)
        return list(out.values())

    first = answers()
    assert first == answers() and first[0] != first[1] != first[2]
    alone = Heard(service, job(sampling=Sampling(temperature=1, seed=4), max_tokens=10))
    assert alone.tokens == first[1]


def test_a_conversation_reads_only_what_is_new(service):
    text = [5, 6, 7]
    for turn in range(10):
        heard = Heard(service, job(text))
        usage = heard.wait()[-1].usage
        assert usage.prompt == len(text)
        assert usage.prompt - usage.reused == (3 if turn == 0 else 5), usage  # the last token said, and four new ones
        text = text + heard.tokens + [9, 10, 11, 12]
    assert len(service.pool) == 1


def test_a_prompt_asked_again_is_not_read_again(service):
    Heard(service, job(LONG)).wait()
    usage = Heard(service, job(LONG)).wait()[-1].usage
    assert usage.reused == len(LONG) and len(service.pool) == 2  # a branch: the first conversation is still there


def test_prompt_scores_are_those_of_the_engine_and_leave_no_session(service, bundle):
    text = LONG[:200]
    events = list(service.stream(job(text, max_tokens=0, logprobs=1, prompt_logprobs=True)))
    chances = events[0].chances
    expected = load(bundle, "reference").engine.score(np.asarray([text]))[0]
    assert [c.token for c in chances] == text and chances[0].logprob is None
    assert np.abs(np.asarray([c.logprob for c in chances[1:]]) - expected).max() < 1e-4
    assert isinstance(events[1], Ended) and len(service.pool) == 0


def test_chances_are_probabilities_in_order():
    logits = np.asarray([1.0, 3.0, 3.0, -2.0], np.float32)
    found = chance(logits, 0, 3)
    assert [i for i, _ in found.top] == [1, 2, 0] and found.logprob == found.top[2][1]
    assert np.isclose(sum(np.exp(v) for _, v in chance(logits, 0, 9).top), 1)
    assert chance(logits, 3, 0).top == ()


def test_cancelled_jobs_end_where_they_are(make):
    service = make(sessions=1)
    running = Heard(service, job(max_tokens=4000))
    waiting = Heard(service, job(max_tokens=4000))
    while not running.log:
        time.sleep(0.01)
    waiting.job.cancel()
    assert isinstance(waiting.wait()[-1], Failed)
    running.job.cancel()
    assert isinstance(running.wait()[-1], Failed)
    assert service.queue() == (0, 0) and not any(k.busy for k in service.pool.list())


def test_leaving_a_stream_cancels_it(service):
    for event in service.stream(job(max_tokens=4000)):
        if isinstance(event, Piece):
            break
    deadline = time.monotonic() + 30
    while service.queue() != (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert service.queue() == (0, 0)


def test_a_listener_that_fails_ends_its_job_only(service):
    broken = job(max_tokens=4000)
    broken.emit = lambda event: 1 / 0
    service.submit(broken)
    assert len(Heard(service, job()).tokens) == 8
    assert service.alive


def test_limits_of_time(make):
    with pytest.raises(TimeUp, match="--timeout"):
        list(make(seconds=0.05).stream(job(LONG * 50)))
    service = make(seconds=0.3, sessions=1)
    cut = Heard(service, job(max_tokens=4000))
    late = Heard(service, job(max_tokens=4000))
    assert cut.wait()[-2].reason == "length" and isinstance(cut.wait()[-1], Done)
    assert isinstance(late.wait()[-1], Failed | Done)


def test_limits_of_the_queue(make):
    service = make(sessions=1, waiting=1)
    heard = [Heard(service, job(max_tokens=4000)) for _ in range(2)]
    with pytest.raises(Overloaded):
        Heard(service, job())
    for h in heard:
        h.job.cancel()


def test_sessions_are_bounded_and_the_oldest_goes(make):
    service = make(sessions=2)
    for first in (5, 6, 7):
        Heard(service, job([first, 9, 9])).wait()
    assert [k.session.tokens[0] for k in service.pool.list()] == [6, 7]
    assert Heard(service, job([5, 9, 9, 9])).wait()[-1].usage.reused == 0


def test_a_turn_is_neither_too_short_nor_too_long(service):
    assert SHORTEST <= service.turn <= LONGEST


def test_closing_cuts_answers_off_and_refuses_more(service):
    heard = Heard(service, job(max_tokens=4000))
    while not heard.log:
        time.sleep(0.01)
    service.close()
    assert isinstance(heard.wait()[-1].error, Closing) and not service.alive
    for ask in (lambda: service.submit(job()), lambda: service.call(int)):
        with pytest.raises(Closing):
            ask()


def test_a_lost_gpu_ends_the_service(make, monkeypatch):
    """Who waits is told, and who watches the process hears of it."""
    service, told = make(), threading.Event()
    service.when_lost = told.set

    def lost(job, service):
        yield
        raise DeviceLost("the GPU has failed")

    monkeypatch.setattr("quamba_edge.serve.engine.work", lost)
    assert isinstance(Heard(service, job()).wait()[-1].error, DeviceLost) and told.wait(10)
    service._thread.join(10)
    assert isinstance(service.lost, DeviceLost) and not service.alive
    with pytest.raises(Closing):
        Heard(service, job())


def test_errors_reach_those_who_asked(service, tmp_path):
    with pytest.raises(BadUsage):
        list(service.stream(job([5], sampling=Sampling(logit_bias={10**6: 1.0}))))
    with pytest.raises(BadUsage, match="no session"):
        list(service.stream(job(session="s77")))
    with pytest.raises(ZeroDivisionError):
        service.call(lambda: 1 // 0).result()
    assert service.call(lambda: threading.current_thread().name).result() == "engine"
    with pytest.raises(FileNotFoundError):
        Service(lambda: open(tmp_path / "none"))


def test_a_session_is_followed_without_its_text(service):
    whole = Heard(service, job([5, 6, 7], max_tokens=4))
    id = whole.wait()[-1].usage.session
    more = [whole.tokens[-1], 9]
    straight = Heard(service, job([5, 6, 7, *whole.tokens, 9], max_tokens=6)).tokens
    service.call(lambda: service.pool.drop(id)).result()
    again = Heard(service, job([5, 6, 7], max_tokens=4)).wait()[-1].usage.session
    followed = Heard(service, job(more, session=again, max_tokens=6))
    assert followed.tokens == straight
    assert followed.wait()[-1].usage.reused == 6 and followed.wait()[-1].usage.prompt == 8
