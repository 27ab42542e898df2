"""The safetensors header of bundles and part files: written in one canonical form, read strictly.

A header follows from its metadata and its tensor list, so a reader can write it again and compare: any byte that differs
is damage.  docs/format.md is the specification.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quamba_edge.errors import BadBundle, NotABundle, Truncated
from quamba_edge.layouts import LINE

BUNDLE, PART = "quamba_edge", "quamba_edge part"  # __metadata__["format"]

# The largest model has some 1000 tensors of 350 bytes each.  Parsed JSON can take 25 times its text, so the bound is on memory.
MAX_HEADER = 8 << 20

SAFETENSORS = {"f32": "F32", "f16": "F16", "i32": "I32", "u32": "U32", "i8": "I8", "u8": "U8"}
BYTES = {"F32": 4, "F16": 2, "I32": 4, "U32": 4, "I8": 1, "U8": 1}


@dataclass(frozen=True)
class Entry:
    """One stored tensor: safetensors dtype, stored shape, and where in the file it lies (bytes [start, stop))."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Header:
    """What stands before the data.  Tensors in file order."""

    metadata: dict[str, str]
    entries: dict[str, Entry]
    size: int  # of the whole file


def emit(metadata: Mapping[str, str], tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The header's bytes, length field and padding included, for tensors {name: (stored dtype, stored shape)} in file order."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        nbytes = math.prod(shape) * BYTES[SAFETENSORS[dtype]]
        assert nbytes > 0 and nbytes % LINE == 0, f"{name}: {nbytes} bytes are not whole lines of {LINE}"
        table[name] = {"dtype": SAFETENSORS[dtype], "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    return _frame(table)


def _frame(table: Mapping[str, Any]) -> bytes:
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % LINE)
    return struct.pack("<Q", len(text)) + text


def read(path: Path, kind: str = BUNDLE) -> Header:
    """The header of a bundle or part file, every claim checked against the file.

    Raises NotABundle (some other file), Truncated (cut, or with bytes behind its end), BadBundle (damaged).
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            what = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
            hint = "to run a checkpoint, pack it first" if stat.S_ISDIR(found.st_mode) else "name a file"
            raise NotABundle(f"{path} is {what}, expected a bundle (NAME.qedge): {hint}")
        with open(path, "rb") as file:
            head = file.read(8 + len(_opening(kind)))
            text = head[8:] + _rest(path, kind, head, found.st_size, file)
    except FileNotFoundError:
        raise NotABundle(
            f"{path} does not exist: check the name, or write it with `quamba-edge pack CHECKPOINT -o {path}`"
        ) from None
    except OSError as e:
        raise NotABundle(f"{path} cannot be read ({e.strerror}): check its permissions and its disk") from None
    metadata, entries = _parse(path, text)
    end = 8 + len(text) + (max(e.stop for e in entries.values()) if entries else 0)
    if found.st_size != end:
        less = "less: it was cut" if found.st_size < end else "more: something was appended"
        raise Truncated(f"{path} has {found.st_size} bytes, its header says {end}; {less}. Copy it again")
    base = 8 + len(text)
    placed = {n: Entry(e.dtype, e.shape, base + e.start, base + e.stop) for n, e in entries.items()}
    return Header(metadata, placed, found.st_size)


def _opening(kind: str) -> bytes:
    """How the JSON of every file of this kind begins."""
    return b'{"__metadata__":{"format":"%s",' % kind.encode()


def _rest(path: Path, kind: str, head: bytes, size: int, file: Any) -> bytes:
    """The header text after the opening, once it is clear that this is such a file and that its length is sane."""
    opening = _opening(kind)
    if size == 0:
        raise NotABundle(f"{path} is empty, expected a bundle: copy or pack it again")
    if head[8:] != opening:
        if len(head) == size and opening.startswith(head[8:]):
            raise Truncated(f"{path} has only {size} bytes, not even a header: copy it again")
        raise NotABundle(f"{path} is {_guess(head)}")
    (length,) = struct.unpack("<Q", head[:8])
    if 8 + length > size:
        raise Truncated(
            f"{path} has {size} bytes, its header alone should have {8 + length}: it was cut or damaged. Copy it again"
        )
    if not len(opening) <= length <= MAX_HEADER:
        raise BadBundle(
            f"{path}: a header of {length} bytes, at most {MAX_HEADER} are expected: damaged. Copy it again"
        )
    return file.read(length - len(opening))


def _guess(head: bytes) -> str:
    """What a file that is no bundle seems to be, and what to do."""
    if head.startswith(b"GGUF"):
        return "a GGUF file, expected a bundle: pack the original checkpoint with `quamba-edge pack`"
    if head.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "a PyTorch checkpoint, expected a bundle: pack it first (`quamba-edge pack CHECKPOINT -o OUT.qedge`)"
    if head[8:].startswith(_opening(PART)[: len(head) - 8]):
        return "a part of an unfinished bundle: finish it with `quamba-edge pack ... --resume`"
    if head[8:9] == b"{":
        return "a safetensors file but no bundle: pack it first (`quamba-edge pack CHECKPOINT -o OUT.qedge`)"
    return "not a bundle (NAME.qedge): expected a file written by `quamba-edge pack`"


def loads(text: bytes | str, what: str) -> Any:
    """JSON, or BadBundle: no duplicate keys, no infinities, no nesting bombs, no numbers of a million digits."""

    def integer(digits: str) -> int:
        if len(digits) > 20:  # beyond 64 bits, and quadratic in length to convert
            raise ValueError(f"a number of {len(digits)} digits")
        return int(digits)

    def real(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise ValueError("a number that is not finite")
        return value

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a duplicate key")
        return found

    try:
        text = text.decode() if isinstance(text, bytes) else text
        return json.loads(text, parse_int=integer, parse_float=real, parse_constant=real, object_pairs_hook=table)
    except RecursionError:
        raise BadBundle(f"{what} is nested too deep: damaged or hostile") from None
    except ValueError as e:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise BadBundle(f"{what} is not the JSON expected ({e}): damaged. Copy it again") from None


def _parse(path: Path, text: bytes) -> tuple[dict[str, str], dict[str, Entry]]:
    """Metadata and entries (offsets relative to the data), from header text without its length field."""

    def bad(found: str) -> BadBundle:
        return BadBundle(f"{path}: the header has {found}: damaged. Copy it again")

    table = loads(text, f"{path}: the header")
    if not isinstance(table, dict) or not isinstance(table.get("__metadata__"), dict):
        raise bad("no __metadata__ table")
    metadata = table["__metadata__"]
    if not all(isinstance(v, str) for v in metadata.values()):
        raise bad("metadata that is not text")
    entries: dict[str, Entry] = {}
    offset = 0
    for name, raw in table.items():
        if name == "__metadata__":
            continue
        if not isinstance(raw, dict) or set(raw) != {"dtype", "shape", "data_offsets"}:
            raise bad(f"no dtype, shape and data_offsets (alone) for {name!r}")
        dtype, shape, span = raw["dtype"], raw["shape"], raw["data_offsets"]
        if not isinstance(dtype, str) or dtype not in BYTES:
            raise bad(f"dtype {dtype!r} for {name!r}, expected one of {', '.join(BYTES)}")
        if not _naturals(shape) or not shape or len(shape) > 8 or not _naturals(span) or len(span) != 2:
            raise bad(f"sizes that are not natural numbers for {name!r}")
        nbytes = math.prod(shape) * BYTES[dtype]
        if span != [offset, offset + nbytes] or nbytes == 0 or nbytes % LINE:
            raise bad(f"{name!r} at bytes {span}, expected [{offset}, {offset + nbytes}], in whole lines of {LINE}")
        entries[name] = Entry(dtype, tuple(shape), *span)
        offset += nbytes
    try:
        same = _frame(table)[8:] == text
    except UnicodeEncodeError:  # half of a surrogate pair, from an escape
        same = False
    if not same:
        raise bad("bytes that no writer puts there")
    return metadata, entries


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)
