"""libcuda itself, by ctypes: what pycuda does not call.  Nothing here needs a context but graphs and memory in pieces."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from quamba_edge.backends import cuda_pieces
from quamba_edge.errors import Missing

COMPUTE_MAJOR, COMPUTE_MINOR, INTEGRATED = 75, 76, 18  # CUdevice_attribute
THREAD_LOCAL = 1  # CUstreamCaptureMode
_pointer, _ints = ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)
# What is called of libcuda beside what pycuda does, under the names by which it is exported (tests/cuda/test_prototypes.py reads cuda.h).
CALLS: dict[str, list[Any]] = {
    "cuInit": [ctypes.c_uint],
    "cuDriverGetVersion": [_ints],
    "cuDeviceGetCount": [_ints],
    "cuDeviceGet": [_ints, ctypes.c_int],
    "cuDeviceGetAttribute": [_ints, ctypes.c_int, ctypes.c_int],
    "cuGetErrorName": [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)],
    "cuStreamBeginCapture_v2": [_pointer, ctypes.c_int],
    "cuStreamEndCapture": [_pointer, ctypes.POINTER(_pointer)],
    "cuGraphInstantiateWithFlags": [ctypes.POINTER(_pointer), _pointer, ctypes.c_ulonglong],
    "cuGraphDestroy": [_pointer],
    "cuGraphExecDestroy": [_pointer],
    "cuGraphLaunch": [_pointer, _pointer],
    **cuda_pieces.CALLS,
}


@cache
def driver() -> ctypes.CDLL:
    """OSError where there is none; Missing where it is too old for what is called here."""
    native = ctypes.CDLL("libcuda.so.1")
    try:
        for name, arguments in CALLS.items():
            getattr(native, name).argtypes, getattr(native, name).restype = arguments, ctypes.c_int
    except AttributeError as e:
        raise Missing(f"the CUDA driver is too old ({e}): it must be of CUDA 12 or later") from None
    return native


def checked(native: Any, status: int, what: str) -> None:
    if status:
        name = ctypes.c_char_p()
        native.cuGetErrorName(status, ctypes.byref(name))
        raise Missing(f"{what}: {(name.value or b'?').decode()}: `quamba-edge doctor` looks for the cause")


def machine(native: Any) -> tuple[tuple[int, int], int, bool]:
    """((major, minor) of the driver's CUDA, architecture of the first GPU, whether it shares the machine's memory, as boards do)."""
    checked(native, native.cuInit(0), "the CUDA driver does not start")
    version, device, major, minor, board = (ctypes.c_int() for _ in range(5))
    checked(native, native.cuDriverGetVersion(ctypes.byref(version)), "the CUDA driver")
    checked(native, native.cuDeviceGet(ctypes.byref(device), 0), "no GPU")
    for value, attribute in ((major, COMPUTE_MAJOR), (minor, COMPUTE_MINOR), (board, INTEGRATED)):
        checked(native, native.cuDeviceGetAttribute(ctypes.byref(value), attribute, device), "the GPU")
    return (version.value // 1000, version.value % 1000 // 10), 10 * major.value + minor.value, bool(board.value)
