"""What the CUDA backend asks of a driver: a `Device`; backends/cuda.py has the one for pycuda, the tests one that runs the kernels on the CPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread, current_thread
from typing import Any, Protocol, TypeVar

import numpy as np

from quamba_edge.backends.launch import Launch

T = TypeVar("T")
LEAVING = 10  # seconds that the end of a process waits for a device


class Device(Protocol):
    """One GPU, one context, one stream.  Every method is called on the same thread."""

    errors: tuple[type[Exception], ...]  # what the driver's refusals are raised as

    def alloc(self, nbytes: int) -> Any:
        """Zeroed device memory with an int `address`, freed with the object; MemoryError if there is not enough.

        More than SEGMENT comes in pieces at consecutive addresses, where the driver can do that.
        """

    def free_bytes(self) -> int:
        """What may still be allocated."""

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy a C-order array; done when it returns."""

    def post(self, slot: int, address: int, array: np.ndarray) -> None:
        """Start copying a small array; the slot, 0 or 1, is free again after the next download or sync."""

    def stream(self, address: int, nbytes: int, read: Callable[[int, np.ndarray], None]) -> None:
        """Copy what `read(start, buffer)` puts into each of the device's buffers, in order; one is filled while another is copied."""

    def download(self, address: int, array: np.ndarray) -> None:
        """Fill an array, after everything that was launched."""

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Start a copy within the device: what its memory's speed is measured by."""

    def peaks(self) -> tuple[float, float]:
        """Multiply-adds a second at most, of bytes and of halves, at the clock that the driver names."""

    def launch(self, what: Launch, arguments: list[object]) -> None:
        """Start a kernel.  Pointers are ints that come as `Address`."""

    def capture(self, work: Callable[[], None]) -> Any:
        """The launches of `work`, not run, as a graph, which goes with the object."""

    def replay(self, graph: Any) -> None:
        """Start a graph."""

    def mark(self, end: bool) -> None:
        """Note the time when the stream comes here, as the beginning or the end of a run."""

    def seconds(self) -> float:
        """Between the last two marks, waiting for the second."""

    def sync(self) -> None:
        """Wait for everything."""

    def close(self) -> None:
        """Leave the context; nothing else is asked afterwards."""


class Owner:
    """The thread of a device, on which all its calls are made.

    pycuda keeps a stack of contexts for each thread and aborts the process where one ends with a context on it.  So the thread ends
    only after `end` has had the device closed, or with the process, as a daemon.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.thread = Thread(target=_serve, args=(self._jobs,), name="cuda", daemon=True)
        self.thread.start()

    def do(self, work: Callable[..., T], *arguments: Any) -> T:
        """What `work` returns or raises, done there."""
        future: Future[T] = Future()

        def job() -> None:
            try:
                future.set_result(work(*arguments))
            except BaseException as e:
                future.set_exception(e)

        self.later(job)
        return future.result()

    def later(self, job: Callable[[], None]) -> None:
        """Have it done there, without waiting; not at all once the thread has ended."""
        self._jobs.put(job)

    def end(self, last: Callable[[], None]) -> None:
        """Have that done as the last thing, and wait for it, but not for ever."""
        self._jobs.put(last)
        self._jobs.put(None)
        if current_thread() is not self.thread:  # the garbage collector comes by everywhere
            self.thread.join(LEAVING)


def _serve(jobs: SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # and with it what it held


def release(owner: Owner, holder: Any, raw: Any) -> None:
    """When `holder` goes, wherever that is, drop `raw` on the device's thread; what is left at the end the driver takes back."""
    weakref.finalize(holder, _drop, owner, [raw]).atexit = False


def _drop(owner: Owner, raw: list[Any]) -> None:
    owner.later(raw.clear)


class Memory:
    """Device memory, freed on the device's thread wherever the last reference to it goes."""

    def __init__(self, owner: Owner, raw: Any):
        self.address: int = raw.address
        release(owner, self, raw)


class Address(int):
    """A pointer among a kernel's arguments."""
