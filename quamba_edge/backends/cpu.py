"""Runs programs in the native library, libquamba_cpu.so (csrc/cpu): one call a step, on a team of threads that stays.

Weights are used where the bundle is mapped, never copied.  The library has kernels for several instruction sets and says which
of them this machine runs; the fastest is taken.  The environment variable QUAMBA_CPU names another, to compare or to find a fault.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Mapping
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from quamba_edge.backends.base import STATE_DTYPES, Block, Weights, check
from quamba_edge.backends.host import HostBackend, array_of
from quamba_edge.errors import BadUsage, Missing
from quamba_edge.ops.numerics import shape_of
from quamba_edge.ops.op import Arg, Scalar, Size
from quamba_edge.ops.program import Program, Ref, Step

LIBRARY = Path(__file__).resolve().parents[1] / "_native" / "libquamba_cpu.so"
MAX_THREADS = 256

_int64s, _floats, _doubles = (ctypes.POINTER(t) for t in (ctypes.c_int64, ctypes.c_float, ctypes.c_double))
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "quamba_instruction_sets": (ctypes.c_char_p, []),
    "quamba_team_open": (ctypes.c_void_p, [ctypes.c_int]),
    "quamba_team_close": (None, [ctypes.c_void_p]),
    "quamba_plan_open": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_int]),
    "quamba_plan_close": (None, [ctypes.c_void_p]),
    "quamba_plan_add": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p), _int64s]
        + [ctypes.c_int, _int64s, ctypes.c_int, _floats, ctypes.c_int],
    ),
    "quamba_plan_ready": (ctypes.c_int64, [ctypes.c_void_p]),
    "quamba_plan_run": (ctypes.c_double, [ctypes.c_void_p, ctypes.c_void_p, _doubles]),
    "quamba_peak": (ctypes.c_int, [ctypes.c_char_p, ctypes.c_double, _doubles, _doubles]),
    "quamba_read_bandwidth": (ctypes.c_double, [ctypes.c_int, ctypes.c_size_t, ctypes.c_int]),
}


def why_not() -> str | None:
    """Why the native library cannot be used, or None."""
    if not LIBRARY.is_file():
        return f"{LIBRARY} is not built: `make native` (needs g++ and make)"
    try:
        _library()
    except (OSError, AttributeError) as e:
        return f"{LIBRARY} cannot be loaded ({e}): build it on this machine with `make native`"
    return None


def make(threads: int | None = None) -> CpuBackend:
    return CpuBackend(threads, os.environ.get("QUAMBA_CPU"))


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(LIBRARY))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def instruction_sets() -> list[str]:
    """Names of the kernels' instruction sets that this machine runs, fastest first."""
    return _library().quamba_instruction_sets().decode().split()


def read_bandwidth(threads: int, nbytes: int = 512 << 20, repeats: int = 5) -> float:
    """How many bytes a second so many threads read from memory: the best of several passes over `nbytes`."""
    return float(_library().quamba_read_bandwidth(threads, nbytes, repeats))


def peak(instruction_set: str, seconds: float = 0.1) -> tuple[float, float]:
    """Multiply-adds a second that one thread does at most: (of int8 dot products, of floats)."""
    dots, fmas = ctypes.c_double(), ctypes.c_double()
    if _library().quamba_peak(instruction_set.encode(), seconds, dots, fmas):
        raise Missing(
            f"{instruction_set!r} is none of this machine's instruction sets: {', '.join(instruction_sets())}"
        )
    return dots.value, fmas.value


def physical_cores() -> int:
    """Cores that this process may use: two threads of one core count once, and a container's quota counts."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_read(f"/sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list") or str(i) for i in mine}
    quota, _, period = (_read("/sys/fs/cgroup/cpu.max") or "max").partition(" ")
    allowed = len(cores) if quota == "max" else ceil(int(quota) / int(period or 100000))
    return max(1, min(len(cores), allowed))


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


class Recorded:
    """A program as the library holds it.  `scratch` is its bytes beyond weights, arena and state."""

    def __init__(self, library: ctypes.CDLL, instruction_set: str, threads: int):
        self.handle = library.quamba_plan_open(instruction_set.encode(), threads)
        self.scratch = 0
        self.steps = 0
        self.keeps: list[Any] = []  # what the pointers point at
        weakref.finalize(self, library.quamba_plan_close, self.handle)


class CpuBackend(HostBackend):
    """`threads` None: one for each physical core that this process may use.  `instruction_set` None: the fastest."""

    name = "cpu"

    def __init__(self, threads: int | None = None, instruction_set: str | None = None):
        super().__init__()
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise BadUsage(f"--threads {threads}: expected 1 to {MAX_THREADS}")
        known = instruction_sets()
        if instruction_set is not None and instruction_set not in known:
            raise Missing(f"QUAMBA_CPU is {instruction_set!r}, this machine has {', '.join(known)}")
        self.threads, self.instruction_set = threads or physical_cores(), instruction_set or known[0]
        self._native = _library()
        self._team = self._native.quamba_team_open(self.threads)
        weakref.finalize(self, self._native.quamba_team_close, self._team)

    def record(
        self, program: Program, weights: Weights, buffers: Mapping[str, Block], states: Mapping[str, Block]
    ) -> Recorded:
        check(program, weights, states)
        recorded = Recorded(self._native, self.instruction_set, self.threads)
        memory = {("buffer", name): block for name, block in buffers.items()}
        memory |= {("state", name): block for name, block in states.items()}
        for step in program.steps:
            self._add(recorded, step, weights, memory)
        recorded.scratch = self._native.quamba_plan_ready(recorded.handle)
        if recorded.scratch < 0:
            raise MemoryError
        return recorded

    def _add(self, recorded: Recorded, step: Step, weights: Weights, memory: Mapping[tuple[str, str], Block]) -> None:
        pointers, strides, state = [], [], "f32"
        for arg in step.op.arrays:
            ref = step.args[arg.name]
            if ref.kind == "weight":
                array = weights.tensor(ref.name)
                place = array.ctypes.data, shape_of(arg, step.sizes)[-1]
            else:
                block = memory[ref.kind, ref.name]
                array, place = block.memory, _place(block, ref, arg, step.sizes)
                state = block.dtype if arg.dtype == "state" else state
            recorded.keeps.append(array)
            pointers.append(place[0])
            strides.append(place[1])
        sizes = [step.sizes[a.name] for a in step.op.args if isinstance(a, Size)]
        scalars = [step.scalars[a.name] for a in step.op.args if isinstance(a, Scalar)]
        failed = self._native.quamba_plan_add(
            recorded.handle,
            step.op.name.encode(),
            len(pointers),
            (ctypes.c_void_p * len(pointers))(*pointers),
            (ctypes.c_int64 * len(strides))(*strides),
            len(sizes),
            (ctypes.c_int64 * len(sizes))(*sizes),
            len(scalars),
            (ctypes.c_float * len(scalars))(*scalars),
            STATE_DTYPES.index(state),
        )
        if failed:
            raise Missing(
                f"{LIBRARY} has no {step.op.name} as this version calls it: build it again with `make native`"
            )
        recorded.steps += 1

    def run(self, recorded: Recorded) -> None:
        self._elapsed = self._native.quamba_plan_run(recorded.handle, self._team, None)

    def times(self, recorded: Recorded) -> np.ndarray:
        """Run it once, and the seconds that each step of the program took, f64 (steps,)."""
        seconds = np.zeros(recorded.steps)
        into = seconds.ctypes.data_as(_doubles)
        self._elapsed = self._native.quamba_plan_run(recorded.handle, self._team, into)
        return seconds


def _place(block: Block, ref: Ref, arg: Arg, sizes: Mapping[str, int]) -> tuple[int, int]:
    """(address, elements from one row of the argument's last axis to the next) of the part of a block that `ref` selects."""
    array, width = array_of(block), shape_of(arg, sizes)[-1]
    if ref.rows is not None:
        array = array[ref.rows[0] : ref.rows[1]]
    if ref.cols is None:
        return array.ctypes.data, width
    return array.ctypes.data + ref.cols[0] * array.itemsize, array.shape[-1]
