"""Many jobs on one engine: a worker thread owns it, and jobs advance in turns of a few tokens.

service = Service(lambda: load("model.qedge"))
for event in service.stream(Job(prompts=[Prompt(ids)], client="me")):
    ...                                       # Piece, Ended, Prompted, Done; Failed is raised

A turn is a piece of a prompt or some tokens of an answer, so that eight streams all go on while a ninth reads a long prompt.  Nobody
else touches the engine: what must (saving a session, say) comes as a function to `call`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from quamba_edge.errors import DeviceLost, QuambaError
from quamba_edge.runtime.model import Model
from quamba_edge.runtime.session import Session
from quamba_edge.runtime.snapshots import Keep
from quamba_edge.serve.jobs import Cancelled, Closing, Done, Event, Failed, Job, Limits, TimeUp
from quamba_edge.serve.metrics import Metrics
from quamba_edge.serve.pool import Pool
from quamba_edge.serve.scheduler import Scheduler
from quamba_edge.serve.work import work

# A turn in seconds.  The engine holds one working state, so another job's turn begins with copying two states: a turn lasts TURNS
# times that, which bounds what taking turns costs to a ninth, but not so short that Python's own steps count, nor so long that eight
# streams stutter.
TURNS, SHORTEST, LONGEST = 8, 0.004, 0.05
SNAPSHOT_BYTES = 256 << 20  # of all sessions together, for edits and retries

T = TypeVar("T")


class Service:
    """The engine, its conversations and its queue.  All methods may be called from any thread."""

    def __init__(self, load: Callable[[], Model], limits: Limits | None = None, metrics: Metrics | None = None) -> None:
        """Opens the model in the thread that will own it; what `load` raises is raised here."""
        self.limits, self.metrics = limits or Limits(), metrics or Metrics()
        self.keep = Keep(nbytes=SNAPSHOT_BYTES // max(1, self.limits.sessions))
        self.scheduler: Scheduler[Job] = Scheduler(self.limits.sessions, self.limits.waiting)
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self.lost: DeviceLost | None = None
        self.when_lost: Callable[[], None] = lambda: None  # called in the engine's thread
        ready: Future[Model] = Future()
        self._thread = threading.Thread(target=self._own, args=(load, ready), name="engine", daemon=True)
        self._thread.start()
        self.model = ready.result()

    # What other threads do

    def submit(self, job: Job) -> None:
        """Queue a job; its events come through `job.emit`, in the worker's thread.  Overloaded, or Closing, when it cannot."""
        with self._wake:
            if self._closing or not self._thread.is_alive():
                raise Closing("the server is stopping: it takes no more requests")
            job.submitted = time.monotonic()
            self.scheduler.submit(job)
            self._wake.notify()

    def stream(self, job: Job) -> Iterator[Event]:
        """Submit a job and iterate over its events, the last of which is Done; ending the iteration early cancels it."""
        events: SimpleQueue[Event] = SimpleQueue()
        job.emit = events.put
        self.submit(job)
        try:
            while not isinstance(event := events.get(), Done):
                if isinstance(event, Failed):
                    raise event.error
                yield event
            yield event
        finally:
            job.cancel()

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Have the worker call `function` between two turns."""
        future: Future[T] = Future()
        with self._wake:
            if self._closing or not self._thread.is_alive():
                raise Closing("the server is stopping: it takes no more requests")
            self._calls.append((function, future))
            self._wake.notify()
        return future

    def close(self, timeout: float | None = 30) -> None:
        """Stop what runs (each gets Failed), and end the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def queue(self) -> tuple[int, int]:
        """How many jobs run, and how many wait."""
        with self._wake:
            return len(self.scheduler.running), len(self.scheduler.waiting)

    # What the worker does

    def _own(self, load: Callable[[], Model], ready: Future[Model]) -> None:
        try:
            model = load()
            self.pool = Pool(lambda: Session(model.engine, self.keep), model.tokenizer, self.limits.sessions)
        except BaseException as e:
            ready.set_exception(e)
            return
        self.model, self.turn = model, turn_of(model)
        ready.set_result(model)
        try:
            while self._turn():
                pass
        finally:
            with self._wake:
                self._closing = True
                left, calls = self.scheduler.jobs(), list(self._calls)
            for job in left:
                self._end(job, Failed(Closing("the server is stopping: the answer was cut off")))
            for _, future in calls:
                future.set_exception(Closing("the server is stopping"))

    def _turn(self) -> bool:
        """One turn of one job; False when it is time to end."""
        with self._wake:
            while not (self._closing or self._calls or self.scheduler.jobs()):
                self._wake.wait()
            if self._closing:
                return False
            calls = list(self._calls)
            self._calls.clear()
            given_up = [j for j in self.scheduler.waiting if j.cancelled or self._late(j)]
            for job in given_up:
                self.scheduler.remove(job)
            admitted = self.scheduler.admit()
            job_now = self.scheduler.turn()
        for function, future in calls:
            _answer(future, function)
        for job in given_up:
            late = TimeUp(f"no place came free within {self.limits.seconds:g} s: try again later")
            self._end(job, Failed(Cancelled("cancelled") if job.cancelled else late))
        for job in admitted:
            job.begun = time.monotonic()
            self.metrics.queued.observe(job.begun - job.submitted)
            job.work = work(job, self)
        if job_now is not None:
            self._advance(job_now)
        return True

    def _advance(self, job: Job) -> None:
        """Let a job work until its turn is over."""
        end = time.monotonic() + self.turn
        assert job.work is not None
        try:
            while True:
                if job.cancelled:
                    raise Cancelled("cancelled")
                next(job.work)
                if time.monotonic() >= end:
                    return
        except StopIteration:
            self._end(job, Done(job.usage))
        except Exception as e:
            self._end(job, Failed(e))
            if isinstance(e, DeviceLost):  # nothing that comes could be answered
                with self._wake:
                    self._closing, self.lost = True, e
                self.when_lost()

    def _end(self, job: Job, last: Event) -> None:
        """Whatever became of it: its session is given back, and its listener hears so."""
        with self._wake:
            self.scheduler.remove(job)
        if job.work is not None:
            job.work.close()
        how = "done" if isinstance(last, Done) else _kind(last)
        self.metrics.ended.add(how=how)
        self.metrics.whole.observe(time.monotonic() - job.submitted)
        job.tell(last)

    def _late(self, job: Job) -> bool:
        return time.monotonic() - job.submitted > self.limits.seconds


def turn_of(model: Model) -> float:
    """Seconds of a turn for this model's states on this machine, by trying what it costs to change them."""
    live = model.engine.slot(1).state
    spare, spent = live.read(), []
    for _ in range(3):
        begun = time.perf_counter()
        live.write(live.read(spare))
        spent.append(time.perf_counter() - begun)
    return min(LONGEST, max(SHORTEST, TURNS * min(spent)))


def _kind(last: Event) -> str:
    assert isinstance(last, Failed)
    names: dict[type[Exception], str] = {Cancelled: "cancelled", TimeUp: "timeout", Closing: "stopped"}
    return names.get(type(last.error), "refused" if isinstance(last.error, QuambaError) else "error")


def _answer(future: Future[T], function: Callable[[], T]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(function())
        except BaseException as e:
            future.set_exception(e)
