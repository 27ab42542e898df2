"""A session in a file: the state, what follows it, and how to know the text it has seen.  docs/sessions.md is the specification.

    save(session, "tale.qsession")            session = load("tale.qsession", model.engine)

The file has the safetensors format, and one size for any length of text: the state, the last logits, and the last 4,096 tokens are
its tensors; of the tokens before those the digest speaks (runtime/seen.py).  It holds what a person wrote, so nobody else may read it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quamba_edge import __version__
from quamba_edge.bundle.writer import replacing
from quamba_edge.errors import BadSession, BadUsage, ForeignSession
from quamba_edge.runtime.engine import Engine
from quamba_edge.runtime.seen import BLOCK, Seen, closed, digest
from quamba_edge.runtime.session import Session
from quamba_edge.runtime.session_file import (
    FORMAT,
    NUMPY,
    SUFFIX,
    Table,
    checksum,
    damaged,
    header,
    opened,
    read_header,
)
from quamba_edge.runtime.snapshots import USUAL, Keep, Snapshot
from quamba_edge.runtime.state import State, dtype_of

LAST = 4096  # tokens kept as they are: 16 KB, and most conversations whole
CODES = {"f32": "F32", "f16": "F16", "i32": "I32", "i8": "I8"}
STATE = "state."


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
    metadata["sha256"] = checksum(metadata, data)
    with replacing(path) as out:
        os.fchmod(out.fileno(), 0o600)
        out.write(header(metadata, table))
        for piece in data:
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())
        return _facts(path, metadata, os.fstat(out.fileno()))


def examine(path: str | Path) -> Saved:
    """What the header says.  BadSession if it is no session file."""
    path = Path(path)
    with opened(path) as file:
        metadata, _ = read_header(path, file)
        return _facts(path, metadata, os.fstat(file.fileno()))


def _facts(path: Path, metadata: dict[str, str], file: os.stat_result) -> Saved:
    return Saved(
        path=path,
        **{n: metadata[n] for n in ("family", "state_dtype", "digest", "bundle", "tokenizer", "backend")},
        tokens=int(metadata["count"]),
        version=metadata["producer"],
        nbytes=file.st_size,
        saved=file.st_mtime,
    )


def load(path: str | Path, engine: Engine, keep: Keep = USUAL) -> Session:
    """The session, with nothing to read again: its logits are those of the session that was saved.

    ForeignSession if it is of another bundle, tokenizer, family or state dtype; BadSession if it is damaged or no session.
    """
    path = Path(path)
    with opened(path) as file:
        metadata, found = read_header(path, file)
        _fits(path, metadata, engine)
        table = _table(engine)
        if found != table:
            raise damaged(path, "its tensors are not those of this model")
        arrays = {}
        for name, code, shape in table:
            array = np.empty(shape, NUMPY[code])
            if file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
                raise damaged(path, "it was cut")
            arrays[name] = array
        if file.read(1):
            raise damaged(path, "something was appended")
    data = [arrays[name].reshape(-1).view(np.uint8).data for name, _, _ in table]
    if metadata.pop("sha256") != checksum(metadata, data):
        raise damaged(path, "its bytes are not those that were written (sha256 differs)")
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


def _seen(path: Path, metadata: dict[str, str], last: np.ndarray) -> Seen:
    """The text that was seen, as far as the file knows it; its tokens must give its digest."""
    count, link = int(metadata["count"]), bytes.fromhex(metadata["link"])
    link = link if count >= BLOCK else b""
    known = last[LAST - min(count, LAST) :].tolist()
    seen = Seen(known, count - len(known), (count, link, metadata["digest"]))
    if seen.digest() != metadata["digest"] or (seen.whole and digest(known) != metadata["digest"]):
        raise damaged(path, "its tokens are not those of its digest")
    return seen
