"""A bundle's weights on their way to a GPU: planned, allocated, then read; all of it or nothing.

They lie in segments.  A tensor that is larger than one has its own, with several pieces of memory behind it (cuda_pieces.py).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quamba_edge.backends.base import Weights
from quamba_edge.backends.cuda_device import Device, Memory
from quamba_edge.errors import Missing

SEGMENT = 256 << 20  # some Tegra drivers refuse larger allocations while much is free (L4T 36.4.7)
ALIGNED = 256  # bytes
KEPT_FREE = 400 << 20  # what the rest of a board that shares its memory needs not to swap


@dataclass
class Resident:
    """A bundle's weights on the device: name to address, and the segments that hold them."""

    places: dict[str, int] = field(default_factory=dict)
    segments: list[Any] = field(default_factory=list)


class Loader:
    """What is on a device, of which bundles.  Used on the device's thread; `alloc` gives memory that may be dropped on any."""

    def __init__(self, device: Device, alloc: Callable[[int], Memory]):
        self.device, self.alloc = device, alloc
        self.resident: weakref.WeakKeyDictionary[Any, Resident] = weakref.WeakKeyDictionary()

    def load(
        self, weights: Weights, names: set[str], others: Mapping[str, int], progress: Callable[[int, int], None]
    ) -> dict[str, int]:
        """Addresses of all these tensors; those that are not on the device yet are brought there, or none of them."""
        resident = self.resident.get(weights, Resident())
        # In the file's order, so that it is read from its beginning to its end.
        absent = {n: t.loaded_bytes for n, t in weights.manifest.tensors.items() if n in names - set(resident.places)}
        need = sum(_room(n) for n in absent.values())
        if not absent:
            return resident.places
        free = self.device.free_bytes()
        self._admit({"weights": need, **others}, free)
        segments = _segments([(n, _room(size)) for n, size in absent.items()])
        try:  # memory first, so that a failure comes before any reading
            memory = [self.alloc(sum(size for _, size in segment)) for segment in segments]
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
        self.resident[weights] = resident
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
