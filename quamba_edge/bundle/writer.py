"""Write bundles, and the part files a packer keeps while it is not finished.

    write_part(layer 0), write_part(layer 1), ...  →  assemble(bundle, manifest, parts)

Bytes stream through slabs, so memory stays at one tensor.  A file appears under its name whole or not at all, and equal
inputs give equal bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from quamba_edge import layouts
from quamba_edge.bundle import header, manifest
from quamba_edge.bundle.manifest import Manifest, Tensor
from quamba_edge.errors import BadBundle, BadUsage, HashMismatch, Missing

SLAB = 4 << 20

Stored = tuple[str, Sequence[int], str, np.ndarray]  # name, logical shape, layout, what layouts.pack returned


@dataclass(frozen=True)
class Part:
    """Finished tensors on disk, in order, and whatever note the packer left with them.  A bundle can serve as one."""

    path: Path
    tensors: dict[str, Tensor]
    note: dict[str, Any]
    places: dict[str, header.Entry]

    @classmethod
    def open(cls, path: str | Path) -> Part:
        """Reads the header only; the hashes are checked when the bytes are copied.  Raises BadBundle subclasses."""
        path = Path(path)
        found = header.read(path, header.PART)
        raw = header.loads(found.metadata.get("tensors", ""), f"{path}: tensors")
        note = header.loads(found.metadata.get("note", ""), f"{path}: note")
        if not isinstance(raw, dict) or not isinstance(note, dict):
            raise BadBundle(f"{path}: damaged part file: delete it, and pack again with --resume")
        tensors = {name: Tensor.from_json(name, t) for name, t in raw.items()}
        agree(path, tensors, found)
        return cls(path, tensors, note, found.entries)


def agree(path: Path, tensors: dict[str, Tensor], found: header.Header) -> None:
    """BadBundle unless the safetensors table lists exactly these tensors, in order, in their stored form."""
    if list(tensors) != list(found.entries):
        odd = next((n for n in [*tensors, *found.entries] if n not in tensors or n not in found.entries), "their order")
        raise BadBundle(f"{path}: header and manifest list different tensors ({odd}): damaged. Copy or pack it again")
    for name, entry in found.entries.items():
        dtype, shape = tensors[name].stored
        if (entry.dtype, entry.shape) != (header.SAFETENSORS[dtype], shape):
            have, want = f"{entry.dtype} {list(entry.shape)}", f"{header.SAFETENSORS[dtype]} {list(shape)}"
            raise BadBundle(
                f"{path}: tensor {name} is stored as {have}, expected {want}: damaged. Copy or pack it again"
            )


def write_part(path: str | Path, tensors: Iterable[Stored], note: dict[str, Any] | None = None) -> None:
    """Write tensors, taken one at a time, with a JSON note, as a part file (a small safetensors file).

    The tensors are spooled to a second file first, since the header that goes before them needs their hashes.
    Raises Missing (no room, not writable), BadUsage (no such folder).
    """
    path = Path(path)
    table: dict[str, Tensor] = {}
    with _temporary(path, ".spool") as spool:
        for name, shape, layout, stored in tensors:
            assert name not in table, f"two tensors called {name}"
            raw, dtype = _bytes_of(stored), _dtype_of(layout, stored)
            tensor = Tensor(dtype, tuple(int(n) for n in shape), layout, hashlib.sha256(raw).hexdigest())
            kind, expected = tensor.stored
            assert stored.shape == expected, (
                f"{name}: stored as {stored.shape}, {layout} of {tuple(shape)} {kind} is {expected}"
            )
            spool.write(raw)
            table[name] = tensor
        size = spool.tell()
        metadata = {
            "format": header.PART,
            "tensors": _json({n: {**vars(t), "shape": list(t.shape)} for n, t in table.items()}),
            "note": _json(note or {}),
        }
        start = header.emit(metadata, {n: t.stored for n, t in table.items()})
        spool.flush()
        spool.seek(0)
        with _atomic(path, len(start) + size) as out:
            out.write(start)
            while slab := spool.read(SLAB):
                out.write(slab)


def assemble(path: str | Path, described: Manifest, parts: Sequence[str | Path]) -> str:
    """Write the bundle of these part files in their order; its digest.  `described` needs no tensors: the parts bring them.

    Every byte is hashed again on the way.  Raises HashMismatch naming part and tensor, BadBundle (the manifest does not fit the
    tensors; a damaged part), Missing (no room, with free and needed bytes), BadUsage.
    """
    return _write(Path(path), described, [Part.open(p) for p in parts])


def amend(path: str | Path, change: Callable[[Manifest], Manifest], out: str | Path | None = None) -> str:
    """Write a bundle's tensors again under a changed manifest (measured perplexity, golden prompts), in place or to `out`."""
    path = Path(path)
    found = header.read(path)
    described = manifest.parse(found.metadata.get("manifest", ""))
    agree(path, described.tensors, found)
    return _write(Path(out or path), change(described), [Part(path, described.tensors, {}, found.entries)])


def write_bundle(path: str | Path, described: Manifest, tensors: Iterable[Stored]) -> str:
    """Write a bundle of tensors taken one at a time; its digest.  Disk holds them twice for a moment.  Raises as `assemble`."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write_part(part, tensors)
        return assemble(path, described, [part])
    finally:
        part.unlink(missing_ok=True)


def _write(path: Path, described: Manifest, parts: Sequence[Part]) -> str:
    tensors: dict[str, Tensor] = {}
    for part in parts:
        twice = tensors.keys() & part.tensors.keys()
        if twice:
            raise BadBundle(
                f"{part.path}: tensor {min(twice)} is in an earlier part too: delete the parts and pack again"
            )
        tensors |= part.tensors
    described = replace(described, tensors=tensors, format=manifest.FORMAT)
    text = described.text()
    manifest.parse(text).check()  # nothing is written that the reader would refuse
    digest = manifest.digest(text)
    metadata = {"format": header.BUNDLE, "manifest": text, "manifest_sha256": digest}
    start = header.emit(metadata, {n: t.stored for n, t in tensors.items()})
    if len(start) - 8 > header.MAX_HEADER:
        raise BadBundle(
            f"{path}: the header would have {len(start)} bytes, at most {header.MAX_HEADER} fit: shorten the chat template"
        )
    with _atomic(path, len(start) + sum(e.nbytes for p in parts for e in p.places.values())) as out:
        out.write(start)
        for part in parts:
            with open(part.path, "rb") as source:
                for name, entry in part.places.items():
                    _copy(source, entry, out, part, name)
    return digest


def _copy(source: BinaryIO, entry: header.Entry, out: BinaryIO, part: Part, name: str) -> None:
    source.seek(entry.start)
    left, seen = entry.nbytes, hashlib.sha256()
    while left:
        slab = source.read(min(left, SLAB))
        if not slab:
            break
        seen.update(slab)
        out.write(slab)
        left -= len(slab)
    if seen.hexdigest() != part.tensors[name].sha256:
        raise HashMismatch(
            f"{part.path}: the bytes of {name} are not those that were written: delete it and pack again"
        )


@contextmanager
def _atomic(path: Path, size: int) -> Iterator[BinaryIO]:
    """A file of `size` bytes to write, which takes the name `path` when the block ends well and vanishes when it does not."""
    if path.is_dir():
        raise BadUsage(f"{path} is a folder: name the file to write, such as {path / 'model.qedge'}")
    folder = path.parent
    with plainly(path, size):
        free = shutil.disk_usage(folder).free
        if free < size:
            raise Missing(_no_room(path, size, free))
    with _temporary(path, ".tmp", size) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.replace(file.name, path)
        handle = os.open(folder, os.O_RDONLY)  # the name itself must reach the disk, too
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file to write, which takes the name `path` when the block ends well and vanishes when it does not."""
    with _temporary(path, ".tmp") as file:
        yield file
        file.flush()
        os.replace(file.name, path)


@contextmanager
def _temporary(path: Path, suffix: str, size: int | None = None) -> Iterator[BinaryIO]:
    """A new file beside `path`, removed at the end unless it was renamed; OSErrors become ours."""
    name = path.with_name(f".{path.name}.{os.getpid()}{suffix}")
    with plainly(path, size):
        try:
            with open(name, "w+b") as file:
                yield file
        finally:
            name.unlink(missing_ok=True)


@contextmanager
def plainly(path: Path, size: int | None = None) -> Iterator[None]:
    """OSErrors of writing `path` as errors of ours."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Missing(_no_room(path, size, shutil.disk_usage(path.parent).free)) from None
        if isinstance(e, FileNotFoundError) and not path.parent.is_dir():
            raise BadUsage(
                f"there is no folder {path.parent} to write {path.name} into: mkdir -p {path.parent}"
            ) from None
        raise Missing(f"cannot write {path} ({e}): choose another place with -o, or see to its permissions") from None


def _no_room(path: Path, size: int | None, free: int) -> str:
    needs = "more bytes" if size is None else f"{size} bytes"
    return f"no room to write {path}: it needs {needs}, {path.parent} has {free} free: free some, or choose another folder with -o"


def _dtype_of(layout: str, stored: np.ndarray) -> str:
    """Logical dtype of a stored array."""
    found = layouts.find(layout)
    names = [d for d in found.dtypes if found.stored or layouts.DTYPES[d] == stored.dtype]
    assert names and (not found.stored or stored.dtype == layouts.stored_dtype(found)), (
        f"layout {layout} does not store {stored.dtype}"
    )
    return names[0]


def _bytes_of(stored: np.ndarray) -> memoryview:
    assert stored.flags.c_contiguous, "a stored array is contiguous"
    return stored.reshape(-1).view(np.uint8).data


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
