"""The native library in a process of another architecture, as a backend of this one.

Both map one file: blocks and weights lie in it, and pointers travel as offsets.  `serve.cpp` is the other end; it is started once,
as an emulator takes a while to begin.
"""

from __future__ import annotations

import mmap
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quamba_edge import layouts
from quamba_edge.backends.base import Block, Weights
from quamba_edge.backends.cpu import CpuBackend, Recorded
from quamba_edge.backends.host import HostBackend
from quamba_edge.ops.program import Program

FENCE = 64  # bytes behind every block, which nobody may change
MARK = 0xFF  # NaN to whoever reads it as floats


class Process:
    """A running `serve` and the memory shared with it; has the functions of the library that CpuBackend calls."""

    def __init__(self, command: Sequence[str], size: int = 256 << 20):
        self._file = tempfile.NamedTemporaryFile(prefix="quamba-")
        self._file.truncate(size)
        self.memory = np.frombuffer(mmap.mmap(self._file.fileno(), size), np.uint8)
        self._errors = tempfile.TemporaryFile()
        self._served = subprocess.Popen(
            [*command, self._file.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._used = 0
        self._fences: list[int] = []

    def take(self, size: int) -> np.ndarray:
        """Zeroed bytes on a 64-byte boundary, with a fence behind them."""
        start, end = self._used, self._used + size
        self._used = -(-(end + FENCE) // layouts.LINE) * layouts.LINE
        if self._used > len(self.memory):
            raise MemoryError(f"{self._used} bytes of shared memory, there are {len(self.memory)}")
        self.memory[start:end] = 0
        self.memory[end : end + FENCE] = MARK
        self._fences.append(end)
        return self.memory[start:end]

    def free_all(self) -> None:
        """Forget every block; AssertionError if something has written behind one."""
        broken = [end for end in self._fences if (self.memory[end : end + FENCE] != MARK).any()]
        self._used, self._fences = 0, []
        assert not broken, f"{len(broken)} blocks were written beyond their end"

    def ask(self, *request: Any) -> str:
        try:
            self._served.stdin.write(" ".join(map(str, request)) + "\n")
            self._served.stdin.flush()
            answer = self._served.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"serve ended with {self._served.wait()} on {request}: {said}")
        return answer.strip()

    def close(self) -> None:
        self._served.stdin.close()
        self._served.wait(10)

    # The library's functions, with the arguments that CpuBackend passes through ctypes.

    def quamba_instruction_sets(self) -> bytes:
        return self.ask("instruction_sets").encode()

    def quamba_team_open(self, threads: int) -> int:
        return int(self.ask("team_open", threads))

    def quamba_team_close(self, team: int) -> None:
        if not self._served.stdin.closed:
            self.ask("team_close", team)

    def quamba_plan_open(self, instruction_set: bytes, threads: int) -> int:
        return int(self.ask("plan_open", instruction_set.decode(), threads))

    def quamba_plan_close(self, plan: int) -> None:
        if not self._served.stdin.closed:  # the interpreter's last clean-up comes after `close`
            self.ask("plan_close", plan)

    def quamba_plan_add(
        self,
        plan: int,
        op: bytes,
        arrays: int,
        pointers: Any,
        strides: Any,
        sizes: int,
        size: Any,
        scalars: int,
        scalar: Any,
        state: int,
    ) -> int:
        begin = self.memory.ctypes.data
        offsets = [p - begin for p in pointers]
        assert all(0 <= o < self._used for o in offsets), f"{op.decode()} reads what lies outside the shared memory"
        bits = np.asarray(list(scalar), np.float32).view(np.uint32)
        places = [x for pair in zip(offsets, strides, strict=True) for x in pair]
        return int(self.ask("plan_add", plan, op.decode(), state, arrays, *places, sizes, *size, scalars, *bits))

    def quamba_plan_ready(self, plan: int) -> int:
        return int(self.ask("plan_ready", plan))

    def quamba_plan_run(self, plan: int, team: int, times: None) -> float:
        return float(self.ask("plan_run", plan, team))


class _Shared:
    """A bundle whose stored tensors have been copied into shared memory, each once."""

    def __init__(self, weights: Weights, process: Process, held: dict[str, np.ndarray]):
        self.manifest, self._weights, self._process, self._held = weights.manifest, weights, process, held

    def tensor(self, name: str) -> np.ndarray:
        if name not in self._held:
            stored = self._weights.tensor(name)
            place = self._process.take(stored.nbytes)
            place[:] = np.ascontiguousarray(stored).reshape(-1).view(np.uint8)
            self._held[name] = place.view(stored.dtype).reshape(stored.shape)
        return self._held[name]


class RemoteBackend(CpuBackend):
    """One backend at a time; `done` ends it, and looks whether anything was written beyond a block."""

    def __init__(self, process: Process, threads: int, instruction_set: str):
        HostBackend.__init__(self)
        self.process, self.threads, self.instruction_set = process, threads, instruction_set
        self._native: Any = process
        self._team = process.quamba_team_open(threads)
        self._bundle: Weights | None = None
        self._held: dict[str, np.ndarray] = {}

    def alloc(self, shape: tuple[int, ...], dtype: str) -> Block:
        size = Block(None, tuple(shape), dtype).nbytes
        return Block(self.process.take(size), tuple(shape), dtype)

    def record(
        self, program: Program, weights: Weights, buffers: Mapping[str, Block], states: Mapping[str, Block]
    ) -> Recorded:
        if weights is not self._bundle:
            self._bundle, self._held = weights, {}
        return super().record(program, _Shared(weights, self.process, self._held), buffers, states)

    def done(self) -> None:
        self.process.quamba_team_close(self._team)
        self.process.free_all()
