"""Device memory in pieces at consecutive addresses, by the driver's virtual memory management.

Some drivers of Jetsons (L4T 36.4.7) refuse a large allocation while much is free, and the head of an 8B model is one tensor of 542 MB.
Kernels want it at one address; the memory behind it need not be one piece.  pycuda has none of these calls.
"""

from __future__ import annotations

import ctypes
from typing import Any

from quamba_edge.errors import Missing

OUT_OF_MEMORY = 2
VIRTUAL_MEMORY = 102  # CUdevice_attribute: cuMemCreate and what follows it
PINNED, DEVICE, READ_WRITE = 1, 1, 3
_size, _place, _flags = ctypes.c_size_t, ctypes.c_ulonglong, ctypes.c_ulonglong


class Location(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int)]


class Properties(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", Location),
        ("metadata", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    ]


class Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = [("location", Location), ("flags", ctypes.c_int)]


# What is called here, with its arguments: CUdeviceptr and handles of memory have 64 bits.
CALLS: dict[str, list[Any]] = {
    "cuMemGetAllocationGranularity": [ctypes.POINTER(_size), ctypes.POINTER(Properties), ctypes.c_int],
    "cuMemAddressReserve": [ctypes.POINTER(_place), _size, _size, _place, _flags],
    "cuMemCreate": [ctypes.POINTER(_place), _size, ctypes.POINTER(Properties), _flags],
    "cuMemMap": [_place, _size, _size, _place, _flags],
    "cuMemRelease": [_place],
    "cuMemSetAccess": [_place, _size, ctypes.POINTER(Access), _size],
    "cuMemUnmap": [_place, _size],
    "cuMemAddressFree": [_place, _size],
    "cuCtxSynchronize": [],
}


def supported(native: Any) -> bool:
    """Whether the first GPU's driver can do it."""
    found = ctypes.c_int()
    return native.cuDeviceGetAttribute(ctypes.byref(found), VIRTUAL_MEMORY, 0) == 0 and bool(found.value)


class Pieces:
    """`nbytes` from `address` on, none of its pieces larger than `largest`; MemoryError if there is not enough."""

    def __init__(self, native: Any, nbytes: int, largest: int):
        self.native, self.address, self.size = native, 0, 0
        self.mapped: list[tuple[int, int]] = []  # address, bytes
        kind = Properties(type=PINNED, location=Location(DEVICE, 0))
        unit, reserved = ctypes.c_size_t(), ctypes.c_ulonglong()
        self._check(native.cuMemGetAllocationGranularity(ctypes.byref(unit), ctypes.byref(kind), 0))
        size = -(-nbytes // unit.value) * unit.value
        piece = max(unit.value, largest // unit.value * unit.value)
        self._check(native.cuMemAddressReserve(ctypes.byref(reserved), _size(size), _size(0), _place(0), _place(0)))
        self.address, self.size = reserved.value, size
        try:
            for start in range(0, size, piece):
                self._map(self.address + start, min(piece, size - start), kind)
            access = Access(Location(DEVICE, 0), READ_WRITE)
            self._check(native.cuMemSetAccess(_place(self.address), _size(size), ctypes.byref(access), _size(1)))
        except BaseException:
            self.free()
            raise

    def _map(self, address: int, nbytes: int, kind: Properties) -> None:
        handle = ctypes.c_ulonglong()
        self._check(self.native.cuMemCreate(ctypes.byref(handle), _size(nbytes), ctypes.byref(kind), _place(0)))
        status = self.native.cuMemMap(_place(address), _size(nbytes), _size(0), handle, _place(0))
        self.native.cuMemRelease(handle)  # the mapping keeps it
        self._check(status)
        self.mapped.append((address, nbytes))

    def _check(self, status: int) -> None:
        if status == OUT_OF_MEMORY:
            raise MemoryError
        if status:
            raise Missing(f"the CUDA driver maps no memory (error {status}): `quamba-edge doctor` looks for the cause")

    def free(self) -> None:
        """Give everything back, after all that may still use it; on the thread that made it."""
        if self.mapped:
            self.native.cuCtxSynchronize()  # unmapping does not wait
        for address, nbytes in self.mapped:
            self.native.cuMemUnmap(_place(address), _size(nbytes))
        self.mapped = []
        if self.address:
            self.native.cuMemAddressFree(_place(self.address), _size(self.size))
        self.address = 0

    def __del__(self) -> None:
        if getattr(self, "address", 0):
            self.free()
