"""The CUDA backend above the driver: memory, weights in segments, one graph for each recorded program.

What touches the driver is a `Device` (backends/cuda.py has the one for pycuda; the tests have one that runs the kernels on the CPU), so that
the order of calls, graph capture and what a failed load leaves behind are tested without a GPU.  A context belongs to one thread: all
calls of a device are made on a thread of this backend's own.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from quamba_edge import layouts
from quamba_edge.backends import launch
from quamba_edge.backends.base import Backend, Block, Weights, check
from quamba_edge.backends.launch import Launch
from quamba_edge.errors import Missing
from quamba_edge.layouts import DTYPES
from quamba_edge.ops.numerics import shape_of
from quamba_edge.ops.op import Arg
from quamba_edge.ops.program import Program, Ref, Step

SEGMENT = 256 << 20  # some Tegra drivers refuse larger allocations while much is free (L4T 36.4.7)
ALIGNED = 256  # bytes
KEPT_FREE = 400 << 20  # what the rest of a board that shares its memory needs not to swap

T = TypeVar("T")


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


@dataclass
class Resident:
    """A bundle's weights on the device: name to address, and the segments that hold them."""

    places: dict[str, int] = field(default_factory=dict)
    segments: list[Any] = field(default_factory=list)


class CudaBackend(Backend):
    """`open_device` is called once, on the backend's thread."""

    name = "cuda"

    def __init__(self, open_device: Callable[[], Device]):
        self._thread = ThreadPoolExecutor(1, "cuda")
        self.device = self._do(open_device)
        self._resident: weakref.WeakKeyDictionary[Any, Resident] = weakref.WeakKeyDictionary()

    def _do(self, work: Callable[..., T], *arguments: Any) -> T:
        return self._thread.submit(work, *arguments).result()

    def alloc(self, shape: tuple[int, ...], dtype: str) -> Block:
        size = Block(None, tuple(shape), dtype).nbytes
        return Block(self._do(self._alloc, max(size, 1)), tuple(shape), dtype)

    def _alloc(self, nbytes: int) -> Memory:
        return Memory(self._thread, self.device.alloc(nbytes))

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
        places = self._do(self._load, weights, names, {}, _silent)
        bound = [_arguments(step, places, memory) for step in program.steps]
        return Recorded(list(zip(what, bound, strict=True)), [weights, memory])

    def load(
        self, weights: Weights, others: Callable[[], Mapping[str, int]], progress: Callable[[int, int], None]
    ) -> None:
        names = set(weights.manifest.tensors) - {"tokenizer.json"}
        self._do(self._load, weights, names, others(), progress)

    def _load(
        self, weights: Weights, names: set[str], others: Mapping[str, int], progress: Callable[[int, int], None]
    ) -> dict[str, int]:
        """Addresses of all these tensors; those that are not on the device yet are brought there, or none of them."""
        resident = self._resident.get(weights, Resident())
        # In the file's order, so that it is read from its beginning to its end.
        absent = {n: _stored_bytes(t) for n, t in weights.manifest.tensors.items() if n in names - set(resident.places)}
        need = sum(_room(n) for n in absent.values())
        if not absent:
            return resident.places
        free = self.device.free_bytes()
        self._admit({"weights": need, **others}, free)
        segments = _segments([(n, _room(size)) for n, size in absent.items()])
        try:  # memory first, so that a failure comes before any reading
            memory = [self._alloc(sum(size for _, size in segment)) for segment in segments]
        except MemoryError:
            raise Missing(
                f"the GPU has no {need / 1e9:.2f} GB in pieces of {SEGMENT >> 20} MB although {free / 1e9:.2f} are free: restart the "
                "board, or update it if it is L4T 36.4.7 (`quamba-edge doctor`)"
            ) from None
        placed, done, total = {}, 0, sum(absent.values())
        for block, segment in zip(memory, segments, strict=True):
            address = block.address
            for name, size in segment:
                self.device.stream(address, absent[name], _told(_reader(weights, name), progress, done, total))
                placed[name] = address
                address, done = address + size, done + absent[name]
        resident.places |= placed
        resident.segments += memory
        self._resident[weights] = resident
        return resident.places

    def _admit(self, parts: Mapping[str, int], free: int) -> None:
        """Missing unless all of it fits, with what the rest of the machine needs left over: swapping would cost seconds a token."""
        need, room = sum(parts.values()), max(0, free - KEPT_FREE)
        if need > room:
            words = ", ".join(f"{name} {nbytes / 1e9:.2f}" for name, nbytes in parts.items())
            raise Missing(
                f"the model needs {need / 1e9:.2f} GB of GPU memory ({words}), {room / 1e9:.2f} GB can be had: close other programs (a "
                "desktop holds up to 0.9 GB), or pack with fewer bits"
            )

    def run(self, recorded: Recorded) -> None:
        self._do(self._run, recorded)

    def _run(self, *recorded: Recorded) -> None:
        """One after the other, with marks around all of them."""
        for one in recorded:
            if one.runs == 1:
                one.graph = self.device.capture(partial(self._launch, one))
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

    def copy_bandwidth(self, nbytes: int = 256 << 20, repeats: int = 10) -> float:
        """Bytes a second, read and written, of copies within the device: the best of three measurements."""
        return self._do(self._copy_bandwidth, nbytes, repeats)

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


def _silent(done: int, total: int) -> None:
    """No progress is told."""


def _stored_bytes(tensor: Any) -> int:
    """Bytes of a tensor of the manifest, as it lies on the device (and in the file, unless that is stored narrower)."""
    dtype, shape = layouts.stored_spec(layouts.as_read(tensor.layout), tensor.dtype, tuple(tensor.shape))
    return math.prod(shape) * np.dtype(np.uint32 if dtype == "u32" else DTYPES[dtype]).itemsize


def _reader(weights: Weights, name: str) -> Callable[[int, np.ndarray], None]:
    """What fills a buffer with a tensor's bytes from a place on: past the page cache where the weights are a file."""
    if hasattr(weights, "stream"):
        return weights.stream(name)
    raw = weights.tensor(name).reshape(-1).view(np.uint8)
    return lambda start, into: np.copyto(into, raw[start : start + into.nbytes])


def _told(
    read: Callable[[int, np.ndarray], None], progress: Callable[[int, int], None], done: int, total: int
) -> Callable[[int, np.ndarray], None]:
    def also(start: int, into: np.ndarray) -> None:
        read(start, into)
        progress(done + start + into.nbytes, total)

    return also


def _room(nbytes: int) -> int:
    return -(-nbytes // ALIGNED) * ALIGNED


def _segments(sizes: list[tuple[str, int]]) -> list[list[tuple[str, int]]]:
    """In order, as many in a segment as fit; a larger tensor has one of its own."""
    found: list[list[tuple[str, int]]] = []
    used = SEGMENT
    for name, size in sizes:
        if used + size > SEGMENT:
            found.append([])
            used = 0
        found[-1].append((name, size))
        used += size
    return found


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
