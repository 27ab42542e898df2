"""Tensors in files: what is there from the headers alone, and the rows asked for into fresh memory.

A safetensors file is 8 bytes of header length (little endian), a JSON header {name: {dtype, shape, data_offsets}}, and the
data without gaps.  It is read by pread: a mapped file would count towards resident memory page by page, and the
quantizer's promise is to need one layer at a time.  A .bin file (torch's zip of a pickle) can only be mapped.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from quamba_edge.errors import BadCheckpoint

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Bytes of what a file may hold beside; such tensors can be listed, not read.
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
SIZES |= {"U64": 8, "U32": 4, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8}
LONGEST_HEADER = 100_000_000  # bytes; the safetensors library's own limit
REMAP = 256 << 20  # bytes read through one mapping of a .bin before it is dropped, and its resident pages with it


@dataclass(frozen=True)
class Entry:
    """One stored tensor; `begin` is the file offset of its first byte (safetensors only)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * SIZES[self.dtype]


class TensorFile(Protocol):
    """One open weight file."""

    path: Path
    entries: dict[str, Entry]

    def read(self, name: str, rows: slice | None) -> torch.Tensor: ...


def open_file(path: Path) -> TensorFile:
    """The tensors of one weight file, by its suffix.  BadCheckpoint when it is damaged or of another format."""
    return SafetensorsFile(path) if path.suffix == ".safetensors" else BinFile(path)


class SafetensorsFile:
    """Header read and checked at once; data read when asked for."""

    def __init__(self, path: Path):
        self.path = path
        size = path.stat().st_size
        with open(path, "rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if size < 8 or length > LONGEST_HEADER:
                raise BadCheckpoint(
                    f"{path}: does not begin with a safetensors header: another format, or a broken copy; copy it again"
                )
            if 8 + length > size:
                raise BadCheckpoint(
                    f"{path}: {size} bytes, its header alone needs {8 + length}: copy or download it again"
                )
            text = f.read(length)
        try:
            header = json.loads(text, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as e:
            raise BadCheckpoint(
                f"{path}: its safetensors header is not JSON ({e}); copy or download it again"
            ) from None
        if not isinstance(header, dict):
            raise BadCheckpoint(f"{path}: its safetensors header is no object; is it a safetensors file?")
        header.pop("__metadata__", None)
        self.entries = {}
        end = 0
        for name, raw in sorted(header.items(), key=lambda item: _offsets(path, *item)):
            begin, stop = _offsets(path, name, raw)
            entry = self.entries[name] = _entry(path, name, raw, 8 + length + begin)
            if begin != end or stop - begin != entry.nbytes:
                raise BadCheckpoint(
                    f"{path}: {name}: lies at bytes {begin} to {stop} of the data, expected {entry.nbytes} bytes from {end}"
                )
            end = stop
        if 8 + length + end != size:
            raise BadCheckpoint(
                f"{path}: {size} bytes, its header promises {8 + length + end}: copy or download it again"
            )

    def read(self, name: str, rows: slice | None) -> torch.Tensor:
        """The tensor, or its rows, in its stored dtype."""
        entry = self.entries[name]
        shape, skip = entry.shape, 0
        if rows is not None:
            first, last = _span(rows, shape)
            skip = first * (entry.nbytes // shape[0])
            shape = (last - first, *shape[1:])
        dtype = FLOATS[entry.dtype]
        data = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
        view, at = data.numpy().data, entry.begin + skip
        fd = os.open(self.path, os.O_RDONLY)
        try:
            while view:  # one call reads at most 2 GiB
                got = os.preadv(fd, [view], at)
                if got == 0:
                    raise BadCheckpoint(f"{self.path}: {name}: the file has become shorter since it was opened")
                view, at = view[got:], at + got
        finally:
            os.close(fd)
        return data.view(dtype).reshape(shape)


class BinFile:
    """A pickled state dict, unpickled with weights_only: it can hold tensors, not programs."""

    def __init__(self, path: Path):
        self.path = path
        self._tensors: dict[str, torch.Tensor] | None = None
        self._read = 0
        self.entries = {n: Entry(n, _name_of(t.dtype), tuple(t.shape)) for n, t in self._mapped().items()}

    def _mapped(self) -> dict[str, torch.Tensor]:
        if self._tensors is not None:
            return self._tensors
        try:
            loaded = self._load()
        except Exception as e:  # zip, pickle and torch each raise their own
            reason = str(e).split("\n")[0][:200]
            raise BadCheckpoint(
                f"{self.path}: no PyTorch state dict ({type(e).__name__}: {reason}); copy it again, or save safetensors"
            ) from None
        if not isinstance(loaded, dict) or not all(isinstance(t, torch.Tensor) for t in loaded.values()):
            raise BadCheckpoint(
                f"{self.path}: holds something else than named tensors; save model.state_dict() instead"
            )
        self._tensors = {str(name): tensor.detach() for name, tensor in loaded.items()}
        return self._tensors

    def _load(self) -> Any:
        """What the pickle holds; any error is one of the file."""
        return torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)

    def read(self, name: str, rows: slice | None) -> torch.Tensor:
        """The tensor, or its rows, in its stored dtype; a copy, so that the mapping can go."""
        tensor = self._mapped()[name]
        if rows is not None:
            tensor = tensor[slice(*_span(rows, tuple(tensor.shape)))]
        copy = tensor.clone(memory_format=torch.contiguous_format)
        self._read += copy.nbytes
        if self._read > REMAP:
            self._tensors, self._read = None, 0
        return copy


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _offsets(path: Path, name: str, raw: Any) -> tuple[int, int]:
    pair = raw.get("data_offsets") if isinstance(raw, dict) else None
    if not isinstance(pair, list) or len(pair) != 2 or not all(type(v) is int and v >= 0 for v in pair):
        raise BadCheckpoint(f"{path}: {name}: data_offsets is {pair!r}, expected two byte positions")
    return pair[0], pair[1]


def _entry(path: Path, name: str, raw: Any, begin: int) -> Entry:
    dtype, shape = raw.get("dtype"), raw.get("shape")
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise BadCheckpoint(f"{path}: {name}: dtype is {dtype!r}, expected one of {', '.join(SIZES)}")
    if not isinstance(shape, list) or not all(type(v) is int and v >= 0 for v in shape):
        raise BadCheckpoint(f"{path}: {name}: shape is {shape!r}, expected a list of sizes")
    return Entry(name, dtype, tuple(shape), begin)


def _name_of(dtype: torch.dtype) -> str:
    """safetensors' name of a torch dtype; torch's own where it has none."""
    names = {v: k for k, v in FLOATS.items()}
    names |= {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"}
    names |= {torch.bool: "BOOL", torch.complex64: "C64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}
    return names.get(dtype, str(dtype))


def _span(rows: slice, shape: tuple[int, ...]) -> tuple[int, int]:
    """First row, and the one after the last, of a contiguous slice."""
    assert shape and rows.step in (None, 1), f"rows {rows} of a tensor of shape {shape}"
    first, last, _ = rows.indices(shape[0])
    return first, max(first, last)
