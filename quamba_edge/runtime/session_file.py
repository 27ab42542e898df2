"""The bytes of a session file: a safetensors header that follows from its metadata and table, and a checksum over everything.

docs/sessions.md is the specification; runtime/saved.py says what is in it.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
import struct
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from quamba_edge.bundle.header import loads
from quamba_edge.errors import BadBundle, BadSession

FORMAT = "quamba_edge session 1"
SUFFIX = ".qsession"
MAX_HEADER = 1 << 20
PAGE = 4096  # a header is whole pages, so that the length of a version or of a backend's name changes no size
NUMPY: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I32": np.dtype("<i4"),
    "I8": np.dtype("i1"),
}
FIELDS = set("format producer backend family state_dtype tokenizer bundle count digest link sha256".split())

Table = list[tuple[str, str, tuple[int, ...]]]  # name, safetensors dtype, shape; in file order


def header(metadata: dict[str, str], table: Table) -> bytes:
    """What stands before the data of these tensors."""
    places: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, code, shape in table:
        size = math.prod(shape) * NUMPY[code].itemsize
        places[name] = {"dtype": code, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(places, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    return struct.pack("<Q", len(text)) + text


def checksum(metadata: dict[str, str], data: list[memoryview]) -> str:
    """Over the metadata (without itself) and the data."""
    found = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for piece in data:
        found.update(piece)
    return found.hexdigest()


def opened(path: Path) -> BufferedReader:
    """The file, to read; BadSession where there is none."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: to open a pipe is to wait for its other end
            raise BadSession(f"{path} is no regular file: name a session file (NAME{SUFFIX})")
        return open(path, "rb")
    except FileNotFoundError:
        raise BadSession(f"{path} does not exist: check the name, or save a session there first") from None
    except OSError as e:
        raise BadSession(
            f"{path} cannot be read ({e.strerror}): name a session file, and check its permissions"
        ) from None


def read_header(path: Path, file: BufferedReader) -> tuple[dict[str, str], Table]:
    """Metadata and tensors as the file claims them."""
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= MAX_HEADER:
        raise BadSession(f"{path} is no saved session: expected a file that /save or --session wrote (NAME{SUFFIX})")
    text = file.read(length)
    try:
        table = loads(text, str(path))
        metadata = table.pop("__metadata__")
        found = [(n, t["dtype"], tuple(t["shape"])) for n, t in table.items()]
        kind = metadata["format"]
        if kind != FORMAT and str(kind).startswith("quamba_edge session"):
            raise BadSession(f"{path} was written as {kind!r}, expected {FORMAT!r}: use the version that wrote it")
        if set(metadata) != FIELDS or kind != FORMAT or not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("other metadata")
        if not all(type(n) is int and n > 0 for _, _, shape in found for n in shape):
            raise ValueError("sizes that are not natural numbers")
        if (
            not metadata["count"].isdecimal()
            or len(metadata["count"]) != 16
            or len(metadata["link"]) != 64
            or header(metadata, found)[8:] != text
        ):
            raise ValueError("a header that no writer makes")
        bytes.fromhex(metadata["link"])
    except (BadBundle, ValueError, LookupError, TypeError, AttributeError):
        if b"quamba_edge session" in text:
            raise damaged(path, "its header cannot be read") from None
        raise BadSession(
            f"{path} is no saved session: expected a file that /save or --session wrote (NAME{SUFFIX})"
        ) from None
    return metadata, found


def damaged(path: Path, what: str) -> BadSession:
    """The error for a file that is not what was written."""
    return BadSession(f"{path} is damaged: {what}. Delete it; the text has to be read again")
