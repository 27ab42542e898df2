"""The CUDA backend above the driver: memory, one graph for each recorded program, tokens chosen where the logits are.

What touches the driver is a `Device` (cuda_device.py), so that the order of calls, graph capture and what a failed load (cuda_load.py)
leaves behind are tested without a GPU.  A context belongs to one thread: all calls of a device are made on a thread of this backend's own.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from quamba_edge.backends import launch
from quamba_edge.backends.base import Backend, Block, Weights, check
from quamba_edge.backends.cuda_device import Address, Device, Memory, Owner, release
from quamba_edge.backends.cuda_load import Loader
from quamba_edge.backends.launch import Launch
from quamba_edge.errors import DeviceLost, Missing
from quamba_edge.layouts import DTYPES
from quamba_edge.ops.numerics import shape_of
from quamba_edge.ops.op import Arg
from quamba_edge.ops.program import Program, Ref, Step

T = TypeVar("T")
COPIED = 256 << 20  # bytes of a copy that the memory's speed is measured with: many times every cache


@dataclass
class Recorded:
    """A program with everything bound; `graph` is made at the second run, when every kernel has been loaded by the first."""

    calls: list[tuple[Launch, list[object]]]
    keeps: list[Any]
    runs: int = 0
    graph: Any = None


@dataclass
class Chooser(Recorded):
    """The launches that choose a token (csrc/cuda/sample.cu); their arrays are in `arrays`."""

    arrays: dict[str, Block] = field(default_factory=dict)


class CudaBackend(Backend):
    """`open_device` is called once, on the backend's thread."""

    name = "cuda"

    def __init__(self, open_device: Callable[[], Device]):
        self._owner = Owner()
        try:
            self.device = self._owner.do(open_device)
        except BaseException:
            self._owner.end(lambda: None)
            raise
        self._refusals: tuple[type[Exception], ...] = (Missing, *self.device.errors)
        self.loader = Loader(self.device, self._alloc)
        weakref.finalize(self, self._owner.end, self.device.close)  # also when the process ends

    def _do(self, work: Callable[..., T], *arguments: Any) -> T:
        try:
            return self._owner.do(work, *arguments)
        except self._refusals as e:
            if self._lost():
                raise DeviceLost(
                    f"the GPU has failed, and this process has lost it ({e}): start it again; should that not help, --backend cpu"
                ) from e
            if isinstance(e, Missing):
                raise
            raise Missing(f"the CUDA driver: {e}: `quamba-edge doctor` looks for the cause") from e

    def _lost(self) -> bool:
        """After a fault of a kernel every call of this process fails."""
        try:
            self._owner.do(self.device.sync)
        except self._refusals:
            return True
        return False

    def alloc(self, shape: tuple[int, ...], dtype: str) -> Block:
        size = Block(None, tuple(shape), dtype).nbytes
        return Block(self._do(self._alloc, max(size, 1)), tuple(shape), dtype)

    def _alloc(self, nbytes: int) -> Memory:
        return Memory(self._owner, self.device.alloc(nbytes))

    def upload(self, block: Block, array: np.ndarray) -> None:
        assert array.shape == block.shape and array.dtype == DTYPES[block.dtype], (
            f"{array.shape} {array.dtype} into {block.shape} {block.dtype}"
        )
        self._do(self.device.upload, block.memory.address, np.ascontiguousarray(array))

    def download(self, block: Block) -> np.ndarray:
        array = np.empty(block.shape, DTYPES[block.dtype])
        self._do(self.device.download, block.memory.address, array)
        return array

    def record(
        self, program: Program, weights: Weights, buffers: Mapping[str, Block], states: Mapping[str, Block]
    ) -> Recorded:
        check(program, weights, states)
        memory = {("buffer", n): b for n, b in buffers.items()} | {("state", n): b for n, b in states.items()}
        what = [launch.launch(step.op, step.sizes, _state_of(step, memory)) for step in program.steps]  # or Missing
        names = {ref.name for step in program.steps for ref in step.args.values() if ref.kind == "weight"}
        places = self._do(self.loader.load, weights, names, {}, lambda done, total: None)
        bound = [_arguments(step, places, memory) for step in program.steps]
        return Recorded(list(zip(what, bound, strict=True)), [weights, memory])

    def load(
        self, weights: Weights, others: Callable[[], Mapping[str, int]], progress: Callable[[int, int], None]
    ) -> None:
        names = set(weights.manifest.tensors) - {"tokenizer.json"}
        self._do(self.loader.load, weights, names, others(), progress)

    def run(self, recorded: Recorded) -> None:
        self._do(self._run, recorded)

    def _run(self, *recorded: Recorded) -> None:
        """One after the other, with marks around all of them."""
        for one in recorded:
            if one.runs == 1:
                one.graph = self.device.capture(partial(self._launch, one))
                release(self._owner, one, one.graph)
        self.device.mark(False)
        for one in recorded:
            self._launch(one) if one.graph is None else self.device.replay(one.graph)
            one.runs += 1
        self.device.mark(True)

    def _launch(self, recorded: Recorded) -> None:
        for what, arguments in recorded.calls:
            self.device.launch(what, arguments)

    def chooser(self, logits: Block, V: int) -> Chooser | None:
        try:
            launches = launch.sample(V)
        except Missing:
            return None
        sizes = {name: np.dtype(dtype).itemsize * count(V) for name, (dtype, count) in launch.SAMPLE_ARRAYS.items()}
        arrays = {name: self.alloc((size,), "u8") for name, size in {**sizes, "how": launch.REQUEST}.items()}
        arrays["logits"] = logits
        calls: list[tuple[Launch, list[object]]] = [
            (what, [*(Address(arrays[name].memory.address) for name in names), V]) for what, names in launches
        ]
        return Chooser(calls, [arrays], arrays=arrays)

    def choose(
        self, recorded: Recorded, chooser: Chooser, tokens: Block, ids: np.ndarray, request: np.ndarray
    ) -> int | None:
        """One hand-over to the thread, and one wait, for a token."""
        assert request.nbytes <= launch.REQUEST, f"a request of {request.nbytes} bytes"
        return self._do(self._choose, recorded, chooser, tokens.memory.address, ids, request)

    def _choose(
        self, recorded: Recorded, chooser: Chooser, tokens: int, ids: np.ndarray, request: np.ndarray
    ) -> int | None:
        self.device.post(0, tokens, ids)
        self.device.post(1, chooser.arrays["how"].memory.address, request)
        self._run(recorded, chooser)
        token = np.empty(1, np.int32)
        self.device.download(chooser.arrays["token"].memory.address, token)
        return int(token[0]) if token[0] >= 0 else None

    def times(self, recorded: Recorded) -> np.ndarray:
        """Run it once, launch by launch, and the seconds that each step of the program took, f64 (steps,)."""
        return self._do(self._times, recorded)

    def _times(self, recorded: Recorded) -> np.ndarray:
        seconds = []
        for what, arguments in recorded.calls:
            self.device.mark(False)
            self.device.launch(what, arguments)
            self.device.mark(True)
            seconds.append(self.device.seconds())
        return np.array(seconds)

    def ceilings(self) -> tuple[float, float, float]:
        """What the device allows: bytes a second, as copies reach them; multiply-adds a second of bytes and of halves."""
        return self.copy_bandwidth(), *self._do(self.device.peaks)

    def copy_bandwidth(self, nbytes: int | None = None, repeats: int = 10) -> float:
        """Bytes a second, read and written, of copies within the device: the best of four measurements."""
        return self._do(self._copy_bandwidth, nbytes or min(COPIED, self._do(self.device.free_bytes) // 8), repeats)

    def _copy_bandwidth(self, nbytes: int, repeats: int) -> float:
        to, source = self.device.alloc(nbytes), self.device.alloc(nbytes)
        best = float("inf")
        for _ in range(4):  # the first one also wakes the clocks
            self.device.mark(False)
            for _ in range(repeats):
                self.device.copy(to.address, source.address, nbytes)
            self.device.mark(True)
            best = min(best, self.device.seconds())
        return 2 * repeats * nbytes / best

    def sync(self) -> None:
        self._do(self.device.sync)

    def elapsed(self) -> float:
        return self._do(self.device.seconds)


def _state_of(step: Step, memory: Mapping[tuple[str, str], Block]) -> str:
    refs = (step.args[a.name] for a in step.op.arrays if a.dtype == "state")
    return next((memory[r.kind, r.name].dtype for r in refs), "f32")


def _arguments(step: Step, places: Mapping[str, int], memory: Mapping[tuple[str, str], Block]) -> list[object]:
    pointers, strides = [], []
    for arg in step.op.arrays:
        ref, width = step.args[arg.name], shape_of(arg, step.sizes)[-1]
        if ref.kind == "weight":
            address, stride = places[ref.name], width
        else:
            address, stride = _part(memory[ref.kind, ref.name], ref, arg, width)
        pointers.append(Address(address))
        strides.append(stride)
    return launch.arguments(step.op, pointers, strides, step.sizes, step.scalars)


def _part(block: Block, ref: Ref, arg: Arg, width: int) -> tuple[int, int]:
    """(address, row stride in elements) of the part of a block that `ref` selects."""
    size, address = np.dtype(DTYPES[block.dtype]).itemsize, block.memory.address
    if ref.rows is not None:
        address += ref.rows[0] * math.prod(block.shape[1:]) * size
    if ref.cols is None:
        return address, width
    return address + ref.cols[0] * size, block.shape[-1]
