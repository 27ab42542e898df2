"""A session in a file: the state, what follows it, and how to know the text it has seen.  docs/sessions.md is the specification.

    save(session, "tale.qsession")            session = load("tale.qsession", model.engine)

The file has the safetensors format, and one size for any length of text: the state, the last logits, and the last 4,096 tokens are
its tensors; of the tokens before those the digest speaks (runtime/seen.py).  It holds what a person wrote, so nobody else may read it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from quamba_edge import __version__
from quamba_edge.bundle.header import loads
from quamba_edge.bundle.writer import replacing
from quamba_edge.errors import BadBundle, BadSession, BadUsage, ForeignSession
from quamba_edge.runtime.engine import Engine
from quamba_edge.runtime.seen import BLOCK, Seen, closed, digest
from quamba_edge.runtime.session import Session
from quamba_edge.runtime.snapshots import Keep, Snapshot
from quamba_edge.runtime.state import State, dtype_of

FORMAT = "quamba_edge session 1"
SUFFIX = ".qsession"
LAST = 4096  # tokens kept as they are: 16 KB, and most conversations whole
MAX_HEADER = 1 << 20
NUMPY: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I32": np.dtype("<i4"),
    "I8": np.dtype("i1"),
}
CODES = {"f32": "F32", "f16": "F16", "i32": "I32", "i8": "I8"}
STATE = "state."

Table = list[tuple[str, str, tuple[int, ...]]]  # name, safetensors dtype, shape; in file order


@dataclass(frozen=True)
class Saved:
    """What a file says of itself; sizes in bytes, `saved` in seconds since 1970.  Only `load` checks the rest of the file."""

    path: Path
    family: str
    state_dtype: str
    tokens: int
    digest: str
    bundle: str
    tokenizer: str
    backend: str
    version: str
    nbytes: int
    saved: float


def save(session: Session, path: str | Path) -> Saved:
    """Write the session to `path`, whole or not at all, readable by its owner only; it goes on unchanged.

    BadUsage for an empty session; Missing where it cannot be written.
    """
    path = Path(path)
    if not session.count or session.logits is None:
        raise BadUsage("the session has read nothing yet: there is nothing to save")
    engine, seen = session.engine, session.seen
    last = np.full(LAST, -1, "<i4")
    kept = seen.tokens[-LAST:]
    last[LAST - len(kept) :] = kept
    arrays: dict[str, np.ndarray] = {STATE + n: a[0] for n, a in session.state().arrays.items()}
    arrays |= {"logits": session.logits, "tokens": last}
    table = _table(engine)
    data = [np.ascontiguousarray(arrays[name], NUMPY[code]).reshape(-1).view(np.uint8).data for name, code, _ in table]
    link = seen.link()
    metadata = {
        "format": FORMAT,
        "producer": f"quamba_edge {__version__}",
        "backend": engine.backend.name,
        **_identity(engine),
        "count": f"{seen.count:016d}",  # of one width, like the digests, so that all files of a model have one size
        "digest": closed(link, seen.known(seen.count // BLOCK * BLOCK, seen.count)),
        "link": (link or bytes(32)).hex(),
    }
    metadata["sha256"] = _checksum(metadata, data)
    with replacing(path) as out:
        os.fchmod(out.fileno(), 0o600)
        out.write(_header(metadata, table))
        for piece in data:
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())
    return examine(path)


def examine(path: str | Path) -> Saved:
    """What the header says.  BadSession if it is no session file."""
    path = Path(path)
    with _opened(path) as file:
        metadata, _ = _read_header(path, file)
        facts = os.fstat(file.fileno())
    return Saved(
        path=path,
        **{n: metadata[n] for n in ("family", "state_dtype", "digest", "bundle", "tokenizer", "backend")},
        tokens=int(metadata["count"]),
        version=metadata["producer"],
        nbytes=facts.st_size,
        saved=facts.st_mtime,
    )


def load(path: str | Path, engine: Engine, keep: Keep | None = None) -> Session:
    """The session, with nothing to read again: its logits are those of the session that was saved.

    ForeignSession if it is of another bundle, tokenizer, family or state dtype; BadSession if it is damaged or no session.
    """
    path = Path(path)
    with _opened(path) as file:
        metadata, found = _read_header(path, file)
        _fits(path, metadata, engine)
        table = _table(engine)
        if found != table:
            raise _damaged(path, "its tensors are not those of this model")
        arrays = {}
        for name, code, shape in table:
            array = np.empty(shape, NUMPY[code])
            if file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
                raise _damaged(path, "it was cut")
            arrays[name] = array
        if file.read(1):
            raise _damaged(path, "something was appended")
    data = [arrays[name].reshape(-1).view(np.uint8).data for name, _, _ in table]
    if metadata.pop("sha256") != _checksum(metadata, data):
        raise _damaged(path, "its bytes are not those that were written (sha256 differs)")
    seen = _seen(path, metadata, arrays["tokens"])
    state = State({n.removeprefix(STATE): a[None] for n, a in arrays.items() if n.startswith(STATE)})
    session = Session(engine, keep)
    session.restore(state, seen, arrays["logits"])
    if session.snapshots.lacks(session.count):  # what was saved is an end of a turn, and already in memory
        session.snapshots.add(Snapshot(session.count, state, session.logits, turn=True))
    return session


def listing(folder: str | Path) -> list[Saved]:
    """The sessions in a folder (NAME.qsession), the latest first; by their headers, leaving out what is none."""
    found = []
    for path in Path(folder).glob("*" + SUFFIX):
        try:
            found.append(examine(path))
        except BadSession:
            continue
    return sorted(found, key=lambda s: -s.saved)


def remove(path: str | Path) -> None:
    """Delete a session file.  BadSession if it is some other file."""
    examine(path)
    Path(path).unlink(missing_ok=True)


def _identity(engine: Engine) -> dict[str, str]:
    """What a state belongs to."""
    tokenizer = engine.manifest.tensors.get("tokenizer.json")
    return {
        "family": engine.manifest.family,
        "state_dtype": engine.state_dtype,
        "tokenizer": tokenizer.sha256 if tokenizer is not None else "",
        "bundle": engine.bundle.digest,
    }


def _fits(path: Path, metadata: dict[str, str], engine: Engine) -> None:
    remedies = {
        "family": "use it with the bundle that made it",
        "state_dtype": f"open the bundle with --state-dtype {metadata['state_dtype']}",
        "tokenizer": "use it with the bundle that made it",
        "bundle": "use it with the bundle that made it; packing a checkpoint again makes another one",
    }
    for name, here in _identity(engine).items():
        if metadata[name] != here:
            what = name.replace("_", " ")
            raise ForeignSession(
                f"{path} is a session of {what} {metadata[name][:16]}, this is {what} {here[:16]}: {remedies[name]}"
            )


def _table(engine: Engine) -> Table:
    """The tensors of a session of this engine: the widest numbers first, so that each lies on a boundary of its own width."""
    table: Table = [("tokens", "I32", (LAST,)), ("logits", "F32", (engine.vocab_size,))]
    for spec in engine.specs:
        table.append((STATE + spec.name, CODES[dtype_of(spec, engine.state_dtype)], tuple(spec.shape)))
    return sorted(table, key=lambda t: -NUMPY[t[1]].itemsize)


def _header(metadata: dict[str, str], table: Table) -> bytes:
    places: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, code, shape in table:
        size = int(np.prod(shape)) * NUMPY[code].itemsize
        places[name] = {"dtype": code, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(places, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 4096)  # so that the length of a version or a backend's name changes nothing
    return struct.pack("<Q", len(text)) + text


def _checksum(metadata: dict[str, str], data: list[memoryview]) -> str:
    found = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for piece in data:
        found.update(piece)
    return found.hexdigest()


def _opened(path: Path) -> BufferedReader:
    try:
        file = open(path, "rb")
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
    except FileNotFoundError:
        raise BadSession(f"{path} does not exist: check the name, or save a session there first") from None
    except OSError as e:
        raise BadSession(
            f"{path} cannot be read ({e.strerror}): name a session file, and check its permissions"
        ) from None
    raise BadSession(f"{path} is no regular file: name a session file (NAME{SUFFIX})")


def _read_header(path: Path, file: BufferedReader) -> tuple[dict[str, str], Table]:
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
        expected = {"format", "producer", "backend", "count", "digest", "link", "sha256"}
        expected |= {"family", "state_dtype", "tokenizer", "bundle"}
        if set(metadata) != expected or kind != FORMAT or not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("other metadata")
        if not metadata["count"].isdecimal() or len(metadata["link"]) != 64 or _header(metadata, found)[8:] != text:
            raise ValueError("a header that no writer makes")
        bytes.fromhex(metadata["link"])
    except (BadBundle, ValueError, KeyError, TypeError, AttributeError):
        if b"quamba_edge session" in text:
            raise _damaged(path, "its header cannot be read") from None
        raise BadSession(
            f"{path} is no saved session: expected a file that /save or --session wrote (NAME{SUFFIX})"
        ) from None
    return metadata, found


def _seen(path: Path, metadata: dict[str, str], last: np.ndarray) -> Seen:
    """The text that was seen, as far as the file knows it; its tokens must give its digest."""
    count, link = int(metadata["count"]), bytes.fromhex(metadata["link"])
    link = link if count >= BLOCK else b""
    known = last[LAST - min(count, LAST) :].tolist()
    seen = Seen(known, count - len(known), (count, link, metadata["digest"]))
    if seen.digest() != metadata["digest"] or (seen.whole and digest(known) != metadata["digest"]):
        raise _damaged(path, "its tokens are not those of its digest")
    return seen


def _damaged(path: Path, what: str) -> BadSession:
    return BadSession(f"{path} is damaged: {what}. Delete it; the text has to be read again")
