"""The driver half of the CUDA backend: pycuda for context, memory and launches, libcuda itself for graphs, which pycuda has not.

Not yet run on a GPU: what the backend asks of a device is tested with another one (tests/cuda/test_backend.py), these calls with pycuda
itself on a driver whose GPU is the emulator (tests/cuda/test_real_pycuda.py).
Kernels are cubins for exactly this GPU's architecture, looked at before the driver sees them (backends/cubin.py).
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import weakref
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from quamba_edge.backends import cubin
from quamba_edge.backends.cuda_device import Address
from quamba_edge.backends.cuda_load import SEGMENT
from quamba_edge.backends.cuda_pieces import Pieces, supported
from quamba_edge.backends.cuda_plan import CudaBackend
from quamba_edge.backends.launch import Launch
from quamba_edge.backends.libcuda import THREAD_LOCAL
from quamba_edge.backends.libcuda import checked as _checked
from quamba_edge.backends.libcuda import driver as _driver
from quamba_edge.backends.libcuda import machine as _machine
from quamba_edge.errors import BadUsage, Missing

CUBINS = Path(__file__).resolve().parents[1] / "_native"
STAGE = 16 << 20  # bytes of each pinned buffer that weights go through
# Multiply-adds of bytes and of halves that a multiprocessor's tensor cores do in a clock, dense: NVIDIA's data sheets.
RATES = {(8, 7): (2048, 1024), (9, 0): (4096, 2048)}


def why_not() -> str | None:
    """Why this machine cannot run the kernels, or None."""
    try:
        native = _driver()
        version, sm, board = _machine(native)
    except OSError:
        return "no CUDA driver (libcuda.so.1) on this machine: use --backend cpu"
    except Missing as e:
        return str(e)
    if reason := unusable(CUBINS / f"sm_{sm}", version, sm, board):
        return reason
    return None if find_spec("pycuda") else "pycuda is not installed: pip install 'quamba-edge[cuda]'"


def present() -> bool:
    """Whether there is a GPU to speak of, usable or not."""
    count = ctypes.c_int()
    try:
        native = _driver()
        return not native.cuInit(0) and not native.cuDeviceGetCount(ctypes.byref(count)) and count.value > 0
    except (OSError, Missing):
        return False


def make(threads: int | None = None) -> CudaBackend:
    """Missing where a context, the kernels or a first launch fail."""
    if threads is not None:
        raise BadUsage("--threads is for the cpu backend: leave it out with cuda")
    return CudaBackend(PycudaDevice)


def unusable(folder: Path, driver: tuple[int, int], sm: int, board: bool = True) -> str | None:
    """Why the cubins of a folder are none for a driver of that CUDA version and a GPU of that architecture, and the remedy."""
    remedy = f"make -C csrc cuda ARCHS={sm}"
    try:
        files = json.loads((folder / "cubins.json").read_text())["files"]
        for stem, file in files.items():
            data = (folder / f"{stem}.cubin").read_bytes()
            if hashlib.sha256(data).hexdigest() != file["sha256"]:
                return f"{folder / stem}.cubin is not the file that was built: {remedy}"
            if reason := cubin.refused(cubin.parse(data), driver, sm, board):
                return f"{folder / stem}.cubin: {reason}"
    except OSError as e:
        return f"no kernels for sm_{sm} ({e.filename} is missing): {remedy}"
    except (ValueError, KeyError) as e:
        return f"the kernels in {folder} cannot be read ({e}): {remedy}"
    return None


class PycudaMemory:
    """Device memory as pycuda holds it; free it on the thread that made it."""

    def __init__(self, allocation: Any):
        self.allocation, self.address = allocation, int(allocation)


class Graph:
    """A captured graph that can be launched; dropped on the thread that made it, and before its context goes."""

    def __init__(self, native: Any, runnable: Any):
        self.native, self.runnable = native, runnable

    def drop(self) -> None:
        if self.runnable is not None:
            self.native.cuGraphExecDestroy(self.runnable)
        self.runnable = None

    __del__ = drop


class PycudaDevice:
    """The first GPU.  See cuda_device.Device."""

    def __init__(self) -> None:
        try:
            import pycuda.driver as cuda
        except ImportError as e:
            raise Missing(
                f"pycuda cannot be loaded ({e}): build it again here: pip install --force-reinstall --no-cache-dir 'pycuda>=2025.1.2'"
            ) from e
        self.cuda, self.native = cuda, _driver()
        self.errors: tuple[type[Exception], ...] = (cuda.Error,)
        self.modules: dict[str, Any] = {}
        self.functions: dict[str, Any] = {}
        self.allowed: dict[str, int] = {}  # shared memory that a function was told of
        self.staging: list[np.ndarray] = []
        self.graphs: weakref.WeakSet[Graph] = weakref.WeakSet()
        self.queue: Any = None
        self.marks: list[Any] = []
        self.context: Any = None
        try:
            self._open()
            self._try()
        except BaseException as e:
            self.close()
            if isinstance(e, (MemoryError, *self.errors)):
                said = str(e) or "out of memory"
                raise Missing(f"the CUDA driver: {said}: `quamba-edge doctor` looks for the cause") from e
            raise

    def _open(self) -> None:
        cuda = self.cuda
        cuda.init()
        gpu = cuda.Device(0)
        self.context = gpu.retain_primary_context()
        self.context.push()
        self.pieces = supported(self.native)
        self.integrated = bool(gpu.get_attribute(cuda.device_attribute.INTEGRATED))
        self.queue = cuda.Stream(1)  # 1: does not wait for the default stream
        self.marks = [cuda.Event(), cuda.Event()]
        major, minor = gpu.compute_capability()
        folder = CUBINS / f"sm_{major}{minor}"
        for stem, file in json.loads((folder / "cubins.json").read_text())["files"].items():
            module = cuda.module_from_buffer((folder / f"{stem}.cubin").read_bytes())
            self.modules |= dict.fromkeys(file["kernels"], module)
        self.staging = [cuda.pagelocked_empty(STAGE, np.uint8) for _ in range(2)]

    def _try(self) -> None:
        """One kernel, launched and as a graph: what cannot run here says so now, not in the middle of an answer."""
        values, found = np.arange(32, dtype=np.float32) / 4, np.zeros(32, np.float16)
        memory = self.alloc(512)
        what = Launch("quantize_f16", (1, 1, 1), 32)
        given: list[object] = [Address(memory.address), 32, Address(memory.address + 256), 1, 32]
        self.upload(memory.address, values)
        for start in (lambda: self.launch(what, given), partial(self._replayed, what, given)):
            self.upload(memory.address + 256, np.zeros(32, np.float16))
            start()
            self.download(memory.address + 256, found)
            if not (found == values).all():
                raise Missing(
                    f"a first kernel ran on this GPU and gave {found[:4].tolist()} for {values[:4].tolist()}: use --backend cpu"
                )

    def _replayed(self, what: Launch, given: list[object]) -> None:
        graph = self.capture(partial(self.launch, what, given))
        self.replay(graph)
        self.queue.synchronize()

    def alloc(self, nbytes: int) -> PycudaMemory | Pieces:
        memory: PycudaMemory | Pieces | None = None
        if nbytes > SEGMENT and self.pieces:
            try:
                memory = Pieces(self.native, nbytes, SEGMENT)
            except Missing:
                self.pieces = False  # the driver says that it can, and cannot: then it may have it in one
        try:
            memory = memory or PycudaMemory(self.cuda.mem_alloc(nbytes))
        except self.cuda.MemoryError:
            raise MemoryError from None
        self.cuda.memset_d8_async(memory.address, 0, nbytes, self.queue)  # the default stream would not wait for ours
        return memory

    def free_bytes(self) -> int:
        """Of a board that shares its memory, what Linux could give: the driver's own figure leaves out what can be reclaimed."""
        if self.integrated:
            lines = Path("/proc/meminfo").read_text().splitlines()
            return next(1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
        return self.cuda.mem_get_info()[0]

    def upload(self, address: int, array: np.ndarray) -> None:
        raw = array.reshape(-1).view(np.uint8)
        self.stream(address, raw.nbytes, lambda start, into: np.copyto(into, raw[start : start + into.nbytes]))

    def post(self, slot: int, address: int, array: np.ndarray) -> None:
        part = self.staging[slot][: array.nbytes]
        part[:] = array.reshape(-1).view(np.uint8)
        self.cuda.memcpy_htod_async(address, part, self.queue)

    def stream(self, address: int, nbytes: int, read: Callable[[int, np.ndarray], None]) -> None:
        """Through two pinned buffers in turns: one is filled while the other is copied."""
        copied = [self.cuda.Event(), self.cuda.Event()]
        for i, start in enumerate(range(0, nbytes, STAGE)):
            part = self.staging[i % 2][: min(STAGE, nbytes - start)]
            if i > 1:
                copied[i % 2].synchronize()
            read(start, part)
            self.cuda.memcpy_htod_async(address + start, part, self.queue)
            copied[i % 2].record(self.queue)
        self.queue.synchronize()

    def download(self, address: int, array: np.ndarray) -> None:
        self.queue.synchronize()
        self.cuda.memcpy_dtoh(array, address)

    def copy(self, to: int, source: int, nbytes: int) -> None:
        self.cuda.memcpy_dtod_async(to, source, nbytes, self.queue)

    def peaks(self) -> tuple[float, float]:
        known, cuda = self.cuda.device_attribute, self.cuda
        gpu = cuda.Device(0)
        clocks = gpu.get_attribute(known.MULTIPROCESSOR_COUNT) * 1000.0 * gpu.get_attribute(known.CLOCK_RATE)
        each = RATES.get(gpu.compute_capability(), RATES[8, 7])
        return each[0] * clocks, each[1] * clocks

    def launch(self, what: Launch, arguments: list[object]) -> None:
        formats = "".join("P" if isinstance(a, Address) else "f" if isinstance(a, float) else "i" for a in arguments)
        function = self.functions.get(what.kernel)
        if function is None:
            function = self.functions[what.kernel] = self.modules[what.kernel].get_function(what.kernel)
            function.prepare(formats)
        if what.shared > max(48 << 10, self.allowed.get(what.kernel, 0)):
            function.set_attribute(self.cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, what.shared)
            self.allowed[what.kernel] = what.shared
        block = (what.block, 1, 1)
        function.prepared_async_call(what.grid, block, self.queue, *arguments, shared_size=what.shared)

    def capture(self, work: Callable[[], None]) -> Any:
        native, graph, runnable = self.native, ctypes.c_void_p(), ctypes.c_void_p()
        _checked(native, native.cuStreamBeginCapture_v2(self.queue.handle, THREAD_LOCAL), "capture")
        try:
            work()
        finally:
            status = native.cuStreamEndCapture(self.queue.handle, ctypes.byref(graph))
        _checked(native, status, "capture")
        _checked(native, native.cuGraphInstantiateWithFlags(ctypes.byref(runnable), graph, 0), "graph")
        native.cuGraphDestroy(graph)
        made = Graph(native, runnable)
        self.graphs.add(made)
        return made

    def replay(self, graph: Graph) -> None:
        _checked(self.native, self.native.cuGraphLaunch(graph.runnable, self.queue.handle), "graph launch")

    def mark(self, end: bool) -> None:
        self.marks[end].record(self.queue)

    def seconds(self) -> float:
        self.marks[1].synchronize()
        return self.marks[1].time_since(self.marks[0]) / 1000

    def sync(self) -> None:
        self.queue.synchronize()

    def close(self) -> None:
        """pycuda's objects go while their context is there; then the context, which leaves nothing on the thread's stack."""
        try:
            if self.queue is not None:
                self.queue.synchronize()
        except self.errors:
            pass  # after an error that broke the context everything fails, and goes all the same
        for graph in list(self.graphs):
            graph.drop()
        for held in (self.functions, self.modules, self.staging, self.marks):
            held.clear()
        self.queue = None
        if self.context is not None:
            self.context.detach()
            self.context = None
