"""What the CUDA backend asks of a driver: a `Device`; backends/cuda.py has the one for pycuda, the tests one that runs the kernels on the CPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from quamba_edge.backends.launch import Launch


class Device(Protocol):
    """One GPU, one context, one stream.  Every method is called on the same thread."""

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
        """The launches of `work`, not run, as a graph."""

    def replay(self, graph: Any) -> None:
        """Start a graph."""

    def mark(self, end: bool) -> None:
        """Note the time when the stream comes here, as the beginning or the end of a run."""

    def seconds(self) -> float:
        """Between the last two marks, waiting for the second."""

    def sync(self) -> None:
        """Wait for everything."""


class Memory:
    """Device memory, freed on the device's thread wherever the last reference to it goes."""

    def __init__(self, thread: ThreadPoolExecutor, raw: Any):
        self.address: int = raw.address
        weakref.finalize(self, _free, thread, [raw]).atexit = False


def _free(thread: ThreadPoolExecutor, raw: list[Any]) -> None:
    try:
        thread.submit(raw.clear)
    except RuntimeError:
        pass  # the interpreter ends, and the driver takes everything back


class Address(int):
    """A pointer among a kernel's arguments."""
