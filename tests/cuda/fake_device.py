"""A GPU that is none: keeps what was asked of it, in order, and runs the kernels in the emulator.

It holds callers to CUDA's rules: one thread for all calls, nothing but launches while a graph is captured, only addresses that were given out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from quamba_edge.backends import cuda_load
from quamba_edge.backends.cuda_device import Address
from quamba_edge.backends.launch import Launch
from tests.cuda.emulator import Emulator, Pointer


class FakeMemory:
    def __init__(self, device: FakeDevice, address: int, nbytes: int):
        self.device, self.address = device, address
        self.bytes = np.zeros(nbytes, np.uint8)
        device.held[address] = self.bytes

    def __del__(self) -> None:
        self.device.held.pop(self.address)
        right = threading.get_ident() == self.device.thread and self.device.captured is None
        self.device.calls.append(
            ("free" if right else "free at a wrong place", self.bytes.nbytes)
        )  # nobody sees an assert here


STAGE = 5000  # bytes of a staging buffer: no tensor's size is a multiple


class FakeDevice:
    """`room` bytes in all; `largest` in one piece, and more than a segment comes in pieces of one."""

    errors = (ArithmeticError,)

    def __init__(self, emulator: Emulator | None = None, room: int = 8 << 30, largest: int = 8 << 30):
        self.emulator, self.room, self.largest = emulator, room, largest
        self.held: dict[int, np.ndarray] = {}
        self.calls: list[tuple[str, Any]] = []
        self.thread = threading.get_ident()
        self.captured: list[tuple[Launch, list[object]]] | None = None
        self.posted: set[int] = set()
        self._next = 1 << 20

    def note(self, what: str, detail: Any = None) -> None:
        assert threading.get_ident() == self.thread, f"{what} on another thread than the context's"
        assert self.captured is None or what == "launch", f"{what} while a graph is captured"
        self.calls.append((what, detail))

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def used(self) -> int:
        return sum(m.nbytes for m in self.held.values())

    def alloc(self, nbytes: int) -> FakeMemory:
        self.note("alloc", nbytes)
        if min(nbytes, cuda_load.SEGMENT) > self.largest or nbytes > self.room - self.used():
            raise MemoryError
        address, self._next = self._next, self._next + -(-nbytes // 256) * 256
        return FakeMemory(self, address, nbytes)

    def free_bytes(self) -> int:
        self.note("free_bytes")
        return self.room - self.used()

    def place(self, address: int) -> Pointer:
        start = max(a for a in self.held if a <= address)
        assert address - start < self.held[start].nbytes, f"address {address} is in no memory"
        return Pointer(self.held[start], address - start)

    def upload(self, address: int, array: np.ndarray) -> None:
        self.note("upload", array.nbytes)
        at = self.place(address)
        at.array[at.offset : at.offset + array.nbytes] = array.reshape(-1).view(np.uint8)

    def post(self, slot: int, address: int, array: np.ndarray) -> None:
        self.note("post", array.nbytes)
        assert slot not in self.posted, "a slot is used again before anything was waited for"
        self.posted.add(slot)
        at = self.place(address)
        at.array[at.offset : at.offset + array.nbytes] = array.reshape(-1).view(np.uint8)

    def stream(self, address: int, nbytes: int, read: Callable[[int, np.ndarray], None]) -> None:
        self.note("upload", nbytes)
        at, stages = self.place(address), [np.zeros(STAGE, np.uint8) for _ in range(2)]
        for i, start in enumerate(range(0, nbytes, STAGE)):
            part = stages[i % 2][: min(STAGE, nbytes - start)]
            read(start, part)
            at.array[at.offset + start : at.offset + start + part.nbytes] = part

    def download(self, address: int, array: np.ndarray) -> None:
        self.note("download", array.nbytes)
        self.posted.clear()
        at = self.place(address)
        array.reshape(-1).view(np.uint8)[...] = at.array[at.offset : at.offset + array.nbytes]

    def copy(self, to: int, source: int, nbytes: int) -> None:
        self.note("copy", nbytes)
        a, b = self.place(to), self.place(source)
        a.array[a.offset : a.offset + nbytes] = b.array[b.offset : b.offset + nbytes]

    def peaks(self) -> tuple[float, float]:
        return 2e12, 1e12

    def launch(self, what: Launch, arguments: list[object]) -> None:
        self.note("launch", what.kernel)
        if self.captured is None:
            self._run(what, arguments)
        else:
            self.captured.append((what, list(arguments)))

    def _run(self, what: Launch, arguments: list[object]) -> None:
        assert self.emulator is not None, "this device has no kernels"
        self.emulator.run(what, [self.place(a) if isinstance(a, Address) else a for a in arguments])

    def capture(self, work: Callable[[], None]) -> Any:
        self.note("capture")
        self.captured = []
        work()
        graph, self.captured = self.captured, None
        return graph

    def replay(self, graph: Any) -> None:
        self.note("replay")
        for what, arguments in graph:
            self._run(what, arguments)

    def mark(self, end: bool) -> None:
        self.note("mark", end)

    def seconds(self) -> float:
        self.note("seconds")
        return 0.001

    def sync(self) -> None:
        self.note("sync")
        self.posted.clear()

    def close(self) -> None:
        self.note("close")
