"""Whose turn it is.  Pure: no threads, no clock, no engine, so that fairness is a test and not a hope.

Clients take turns; the jobs of one client take turns among themselves.  So a client with a hundred requests gets as much as one
with a single request, whether they wait or run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from quamba_edge.errors import QuambaError


class Overloaded(QuambaError):
    """The queue is full: come again later."""


class HasClient(Protocol):
    @property
    def client(self) -> str: ...


T = TypeVar("T", bound=HasClient)


class Turns(Generic[T]):
    """A round of clients, each with a round of its own things."""

    def __init__(self) -> None:
        self._clients: deque[str] = deque()
        self._things: dict[str, deque[T]] = {}

    def add(self, thing: T) -> None:
        """At the end of its client's round; an unknown client joins at the end of the clients' round."""
        if thing.client not in self._things:
            self._clients.append(thing.client)
            self._things[thing.client] = deque()
        self._things[thing.client].append(thing)

    def next(self) -> T:
        """The thing whose turn it is; it and its client go to the end.  There must be one."""
        client = self._clients[0]
        self._clients.rotate(-1)
        mine = self._things[client]
        mine.rotate(-1)
        return mine[-1]

    def remove(self, thing: T) -> None:
        mine = self._things[thing.client]
        mine.remove(thing)
        if not mine:
            del self._things[thing.client]
            self._clients.remove(thing.client)

    def __contains__(self, thing: T) -> bool:
        return thing in self._things.get(thing.client, ())

    def __len__(self) -> int:
        return sum(map(len, self._things.values()))

    def __iter__(self) -> Iterator[T]:
        return iter([t for mine in self._things.values() for t in mine])


class Scheduler(Generic[T]):
    """At most `max_running` jobs advance in turns, at most `max_waiting` wait for a place among them."""

    def __init__(self, max_running: int, max_waiting: int) -> None:
        self.max_running, self.max_waiting = max_running, max_waiting
        self.waiting: Turns[T] = Turns()
        self.running: Turns[T] = Turns()

    def submit(self, job: T) -> None:
        """Queue a job.  Overloaded when it could neither run now nor wait."""
        free = max(0, self.max_running - len(self.running))
        if len(self.waiting) >= self.max_waiting + free:
            raise Overloaded(
                f"{len(self.waiting)} requests wait already, {self.max_waiting} may: try again later, or start the server with a larger --max-queue"
            )
        self.waiting.add(job)

    def admit(self) -> list[T]:
        """Move as many waiting jobs as there is room for to the running ones, clients in turn; those moved."""
        moved = []
        while len(self.waiting) and len(self.running) < self.max_running:
            job = self.waiting.next()
            self.waiting.remove(job)
            self.running.add(job)
            moved.append(job)
        return moved

    def turn(self) -> T | None:
        """The running job that may advance now."""
        return self.running.next() if len(self.running) else None

    def remove(self, job: T) -> None:
        """It is finished, or nobody wants it any more."""
        for turns in (self.waiting, self.running):
            if job in turns:
                turns.remove(job)

    def jobs(self) -> list[T]:
        return [*self.running, *self.waiting]
