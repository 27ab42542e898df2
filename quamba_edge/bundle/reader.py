"""Open a bundle: check what it claims, map its data, hand out tensors.

Opening reads the header only.  Data is mapped, not read, and a tensor's hash is checked when it is first asked for.
Format: docs/format.md.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from quamba_edge import layouts
from quamba_edge.bundle import header, manifest
from quamba_edge.bundle.header import Entry
from quamba_edge.bundle.manifest import Manifest
from quamba_edge.bundle.writer import agree
from quamba_edge.errors import BadBundle, HashMismatch, Truncated

SLAB = 1 << 20
MAX_TOKENIZER = 1 << 28  # bytes of tokenizer.json; the largest in use have some 30 MB
NUMPY = {"F32": np.float32, "F16": np.float16, "I32": np.int32, "U32": np.uint32, "I8": np.int8, "U8": np.uint8}


class Bundle:
    """An open bundle.  Use `Bundle.open`, in a `with` block or followed by `close`."""

    def __init__(
        self, path: Path, described: Manifest, config: Any, digest: str, places: dict[str, Entry], verify: bool
    ):
        self.path, self.manifest, self.config, self.digest = path, described, config, digest
        self.places = places  # where each tensor lies in the file: a loader may read it without mapping
        self._unchecked = set(places) if verify else set()
        self._lock = threading.Lock()
        self._widened: dict[str, np.ndarray] = {}
        self._file = open(path, "rb")
        self._map: mmap.mmap | None = None

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> Bundle:
        """Open and check the header; `verify` also checks each tensor's hash when it is first touched.

        Raises NotABundle, NewerFormat, Truncated, HashMismatch (of the manifest), MissingLayout, WrongArchitecture, or BadBundle.
        """
        path = Path(path)
        found = header.read(path)
        if set(found.metadata) != {"format", "manifest", "manifest_sha256"}:
            raise BadBundle(
                f"{path}: metadata is {', '.join(found.metadata)}, expected format, manifest, manifest_sha256. Copy it again"
            )
        text = found.metadata["manifest"]
        digest = manifest.digest(text)
        if digest != found.metadata["manifest_sha256"]:
            raise HashMismatch(f"{path}: the manifest is not the one that was written (sha256 differs). Copy it again")
        try:
            described = manifest.parse(text)
            config = described.check()
        except BadBundle as e:
            raise type(e)(f"{path}: {e}") from None
        agree(path, described.tensors, found)
        return cls(path, described, config, digest, found.entries, verify)

    def tensor(self, name: str) -> np.ndarray:
        """The array as kernels read it, read-only: mapped from the file, or, where it is stored narrower (6 bits), a wider copy that
        the bundle keeps.  Raises HashMismatch naming it if it was damaged."""
        t = self.manifest.tensors.get(name)
        if t is None or layouts.as_read(t.layout) == t.layout:
            return self.stored(name)
        with self._lock:
            found = self._widened.get(name)
        if found is None:
            found = layouts.widen(t.layout, self.stored(name), t.shape)
            found.flags.writeable = False
            with self._lock:
                found = self._widened.setdefault(name, found)
        return found

    def stored(self, name: str) -> np.ndarray:
        """The array as it lies in the file, read-only and mapped.  Raises as `tensor`."""
        entry = self._place(name)
        start, count = entry.start, entry.nbytes // header.BYTES[entry.dtype]
        stored = np.frombuffer(self._mapped(), NUMPY[entry.dtype], count, start)
        if name in self._unchecked:
            if hashlib.sha256(stored.view(np.uint8).data).hexdigest() != self.manifest.tensors[name].sha256:
                raise self._damaged([name])
            self._unchecked.discard(name)
        return stored.reshape(entry.shape)

    def stream(self, name: str) -> Callable[[int, np.ndarray], None]:
        """For a loader that copies: `read(start, into)` fills a buffer (u8) with a tensor's bytes, as kernels read them, from `start` on.

        To be called from the beginning to the end; what was read leaves the page cache again, so that a model is not in memory
        twice.  The last call raises HashMismatch if the tensor was damaged.
        """
        t = self.manifest.tensors.get(name)
        if t is not None and layouts.as_read(t.layout) != t.layout:
            wide = layouts.widen(t.layout, self.stored(name), t.shape).reshape(-1).view(np.uint8)
            return lambda start, into: np.copyto(into, wide[start : start + into.nbytes])
        entry, seen, file = self._place(name), hashlib.sha256(), self._file.fileno()
        unchecked = name in self._unchecked

        def read(start: int, into: np.ndarray) -> None:
            at, rest = entry.start + start, into.data
            while rest.nbytes:
                count = os.preadv(file, [rest], at)
                if not count:
                    raise Truncated(
                        f"{self.path} became shorter than {entry.stop} bytes since it was opened: copy it again"
                    )
                at, rest = at + count, rest[count:]
            os.posix_fadvise(file, entry.start + start, into.nbytes, os.POSIX_FADV_DONTNEED)
            if unchecked:
                seen.update(into.data)
                if at == entry.stop:
                    if seen.hexdigest() != self.manifest.tensors[name].sha256:
                        raise self._damaged([name])
                    self._unchecked.discard(name)

        return read

    def logical(self, name: str) -> np.ndarray:
        """The decoded array in its logical shape: codes as integers, scales and vectors as floats."""
        stored, t = self.stored(name), self.manifest.tensors[name]
        return layouts.unpack(t.layout, stored, t.shape)

    def rows(self, name: str, a: int, b: int) -> np.ndarray:
        """Decoded rows [a, b) of it; a is a multiple of 16."""
        stored, t = self.stored(name), self.manifest.tensors[name]
        return layouts.unpack_rows(t.layout, stored, t.shape, a, b)

    def gather(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Decoded single rows (M,) -> (M, ...), reading only those (and, the first time, all of it for its hash)."""
        stored, t = self.stored(name), self.manifest.tensors[name]
        return layouts.gather(t.layout, stored, t.shape, rows)

    @property
    def chat_template(self) -> str | None:
        return self.manifest.chat_template

    def tokenizer_json(self) -> str:
        """The text of tokenizer.json.  BadBundle if the bundle was packed without one."""
        if "tokenizer.json" not in self.places:
            raise BadBundle(f"{self.path} holds no tokenizer: pack it again with --tokenizer FILE")
        packed, inflate = self.logical("tokenizer.json"), zlib.decompressobj()
        try:
            text = inflate.decompress(packed.tobytes(), MAX_TOKENIZER)
            if not inflate.eof or inflate.unused_data:
                raise ValueError(f"not one zlib stream of at most {MAX_TOKENIZER} bytes")
            return text.decode()
        except (zlib.error, ValueError) as e:
            raise BadBundle(f"{self.path}: tokenizer.json cannot be read ({e}): pack it again") from None

    def verify(self) -> int:
        """Check every tensor's hash, whatever was checked before; bytes read.  HashMismatch names each damaged tensor.

        Reads rather than maps, so that checking a bundle larger than memory does not fill it.
        """
        names = sorted(
            self.places, key=lambda n: -self.places[n].nbytes
        )  # the longest first, so that none runs alone at the end
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            good = dict(zip(names, pool.map(self._matches, names)))
        if not all(good.values()):
            raise self._damaged([n for n in self.places if not good[n]])
        self._unchecked.clear()
        return sum(e.nbytes for e in self.places.values())

    def close(self) -> None:
        """Let go of the file.  Arrays handed out stay valid; the mapping goes with the last of them."""
        self._file.close()
        self._map = None
        self._widened = {}

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Bundle {self.path} {self.manifest.family} {self.digest[:12]}>"

    def _place(self, name: str) -> Entry:
        if name not in self.places:
            raise BadBundle(f"{self.path} has no tensor {name}: pack it again with this version")
        return self.places[name]

    def _mapped(self) -> mmap.mmap:
        with self._lock:
            assert not self._file.closed, f"{self.path} was closed"
            if self._map is None:
                try:
                    self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
                except (OSError, ValueError) as e:
                    raise BadBundle(f"{self.path} cannot be mapped ({e}): copy it to a local disk") from None
                end = max(e.stop for e in self.places.values())
                if len(self._map) < end:
                    self._map = None
                    raise Truncated(f"{self.path} became shorter than {end} bytes since it was opened: copy it again")
            return self._map

    def _matches(self, name: str) -> bool:
        entry, seen = self.places[name], hashlib.sha256()
        for at in range(entry.start, entry.stop, SLAB):
            try:
                seen.update(os.pread(self._file.fileno(), min(SLAB, entry.stop - at), at))
            except OSError as e:
                raise BadBundle(f"{self.path}: {name} cannot be read ({e.strerror}): copy the bundle again") from None
        return seen.hexdigest() == self.manifest.tensors[name].sha256

    def _damaged(self, names: list[str]) -> HashMismatch:
        these = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        return HashMismatch(
            f"{self.path}: the bytes of {these} are not those that were written (sha256 differs). Copy it again"
        )
