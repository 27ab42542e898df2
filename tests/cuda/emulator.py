"""The kernels of csrc/cuda on the CPU: csrc/emu compiled with them, and a Backend that launches them as a GPU would be told to.

Every launch is sent to a program of its own, with buffers of exactly their size, under AddressSanitizer and
UndefinedBehaviorSanitizer (which also sees vector loads that are not aligned).  Outputs are poisoned before, and none of the poison
may be left.  Threads and blocks run in ascending or in descending order.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import struct
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quamba_edge.backends import launch
from quamba_edge.backends.base import Block, Weights, check
from quamba_edge.backends.host import HostBackend, array_of
from quamba_edge.backends.launch import Launch
from quamba_edge.ops.numerics import shape_of
from quamba_edge.ops.op import Arg
from quamba_edge.ops.program import Program, Ref, Step
from tests.native.build import CSRC, make

CUDA = CSRC / "cuda"
BUILD = CSRC.parent / "build" / "emulator"
# What no kernel writes: codes end at -127, and these NaN have bits of their own.
POISON = {"f32": 0x7FC0DEAD, "f16": 0x7EAD, "i8": 0x80, "i32": 0x80000000}
BITS = {"f32": np.uint32, "f16": np.uint16, "i8": np.uint8, "i32": np.uint32}
POINTER, INT, FLOAT = range(3)


class EmulatorError(AssertionError):
    """What the emulator or a sanitizer said before it ended."""


def build(
    folder: Path = BUILD,
    sources: list[Path] | None = None,
    kernels: Callable[[str], list[str]] = launch.kernels,
    target: str = "emulator",
) -> Path:
    """The emulator with the kernels of `sources` (every .cu), made where it is not up to date; several processes may ask.

    target: "emulator", under sanitizers, or "races", which sees accesses that no barrier orders.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        chosen = sources or sorted(CUDA.glob("*.cu"))
        for old in {p.stem for p in folder.glob("*.cpp")} - {p.stem for p in chosen}:  # of a kernel that is no more
            for kind in ("cpp", "asan.o", "races.o", "driver.o"):
                (folder / f"{old}.{kind}").unlink(missing_ok=True)
        for source in chosen:
            entries = [f'static quamba::emu::Kernel entry_{n}("{n}", {n});' for n in kernels(source.stem)]
            text = "\n".join(['#include "emulator.h"', f'#include "{source}"', *entries, ""])
            wrapper = folder / f"{source.stem}.cpp"
            if not wrapper.is_file() or wrapper.read_text() != text:
                wrapper.write_text(text)
        make(target, folder, os.environ.get("CXX", "g++"))
    return folder / target


@dataclass(frozen=True)
class Pointer:
    """A place in an array, in bytes."""

    array: np.ndarray  # u8
    offset: int = 0


class Emulator:
    """A running emulator.  After an error it is started again at the next launch."""

    def __init__(self, program: Path):
        self.program, self._process, self._errors = program, None, tempfile.TemporaryFile()
        atexit.register(self.close)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def run(self, what: Launch, arguments: list[Any], backwards: bool = False) -> None:
        """One launch.  Arguments are Pointer, int or float; what they point at is overwritten with what the kernel made of it."""
        arrays = {id(a.array): a.array for a in arguments if isinstance(a, Pointer)}
        places = {key: i for i, key in enumerate(arrays)}
        name = what.kernel.encode()
        message = [struct.pack("<I", len(name)), name, struct.pack("<3I", *what.grid)]
        message += [struct.pack("<6I", what.block, 1, 1, what.shared, backwards, len(arrays))]
        for array in arrays.values():
            message += [struct.pack("<Q", array.nbytes), array.tobytes()]
        message.append(struct.pack("<I", len(arguments)))
        for a in arguments:
            if isinstance(a, Pointer):
                message.append(struct.pack("<IIQ", POINTER, places[id(a.array)], a.offset))
            elif isinstance(a, float):
                message.append(struct.pack("<IIfI", FLOAT, 0, a, 0))
            else:
                message.append(struct.pack("<IIq", INT, 0, a))
        if self._process is None:
            self._process = self._start()
        try:
            self._process.stdin.write(b"".join(message))
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has said why
        if self._process.stdout.read(1) != b"!":
            self.close()
            self._errors.seek(0)
            raise EmulatorError(self._errors.read().decode(errors="replace")[-4000:])
        for array in arrays.values():
            array[...] = np.frombuffer(self._process.stdout.read(array.nbytes), np.uint8)

    def _start(self) -> Any:
        self._errors.seek(0)
        self._errors.truncate()
        environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}
        pipe = subprocess.PIPE
        return subprocess.Popen(self.program, stdin=pipe, stdout=pipe, stderr=self._errors, env=environment)


@dataclass
class Call:
    site: str
    launch: Launch
    arguments: list[Any]
    outputs: list[tuple[np.ndarray, str]]  # views, and their dtype


class EmulatedBackend(HostBackend):
    """Runs programs through an emulator."""

    name = "emulated"

    def __init__(self, emulator: Emulator, backwards: bool = False):
        super().__init__()
        self.emulator, self.backwards = emulator, backwards

    def record(
        self, program: Program, weights: Weights, buffers: Mapping[str, Block], states: Mapping[str, Block]
    ) -> list[Call]:
        check(program, weights, states)
        memory = {("buffer", n): b for n, b in buffers.items()} | {("state", n): b for n, b in states.items()}
        stored: dict[str, np.ndarray] = {}
        return [self._call(step, weights, memory, stored) for step in program.steps]

    def _call(self, step: Step, weights: Weights, memory: Mapping[Any, Block], stored: dict[str, np.ndarray]) -> Call:
        pointers, strides, outputs, state = [], [], [], "f32"
        for arg in step.op.arrays:
            ref, width = step.args[arg.name], shape_of(arg, step.sizes)[-1]
            if ref.kind == "weight":
                if ref.name not in stored:  # a copy, writable: nobody may change weights, and a test would see it
                    stored[ref.name] = weights.tensor(ref.name).reshape(-1).view(np.uint8).copy()
                pointers.append(Pointer(stored[ref.name]))
                strides.append(width)
                continue
            block = memory[ref.kind, ref.name]
            view, offset, stride = _part(block, ref, arg, width)
            state = block.dtype if arg.dtype == "state" else state
            pointers.append(Pointer(block.memory, offset))
            strides.append(stride)
            if arg.role == "out":
                outputs.append((view, block.dtype))
        arguments = launch.arguments(step.op, pointers, strides, step.sizes, step.scalars)
        return Call(step.site, launch.launch(step.op, step.sizes, state), arguments, outputs)

    def run(self, recorded: list[Call]) -> None:
        for call in recorded:
            for view, dtype in call.outputs:
                view.view(BITS[dtype])[...] = POISON[dtype]
            self.emulator.run(call.launch, call.arguments, self.backwards)
            for view, dtype in call.outputs:
                left = int((view.view(BITS[dtype]) == POISON[dtype]).sum())
                assert left == 0, f"{call.launch.kernel} at {call.site} left {left} of {view.size} results unwritten"


def _part(block: Block, ref: Ref, arg: Arg, width: int) -> tuple[np.ndarray, int, int]:
    """(numpy view, byte offset, row stride in elements) of what `ref` selects."""
    array = array_of(block)
    if ref.rows is not None:
        array = array[ref.rows[0] : ref.rows[1]]
    offset = array.__array_interface__["data"][0] - block.memory.__array_interface__["data"][0]
    if ref.cols is None:
        return array, offset, width
    a, b = ref.cols
    return array[..., a:b], offset + a * array.itemsize, array.shape[-1]
