"""States of prompts' beginnings on disk: a system prompt is read once, by whichever process needs it first.

    prefixes = Prefixes(folder, nbytes=1 << 29)
    generate(session, ids, tokenizer, prefixes=prefixes, prefix_tokens=len(system_ids))

Each is a session file (runtime/saved.py) whose name says what it is the state of: bundle, state dtype, number of tokens, and their
digest.  Files appear whole and vanish whole, equal names have equal contents, and whoever finds one gone or damaged reads the text
instead: two processes need no lock.  When there are too many bytes the least recently used go, by the time of last use (mtime).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from quamba_edge.errors import BadSession, QuambaError
from quamba_edge.runtime import saved
from quamba_edge.runtime.engine import Engine
from quamba_edge.runtime.seen import Reuse, digests
from quamba_edge.runtime.session import Session
from quamba_edge.runtime.snapshots import USUAL, Keep

SUFFIX = ".prefix"
NBYTES = 1 << 29  # six states of a 2.7B model
SHORTEST = 64  # tokens: to read fewer takes a fraction of a second, and a state of megabytes from an SD card as long


def home() -> Path:
    """The folder of this user's prefixes, as the XDG base directories say."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "quamba_edge" / "prefixes"


class _Entry(NamedTuple):
    path: Path
    tokens: int
    digest: str


class Prefixes:
    """A folder of states, at most `nbytes` of them.  Nothing here raises for what is wrong with the folder: `notes` says it."""

    def __init__(self, folder: str | Path, nbytes: int = NBYTES, shortest: int = SHORTEST):
        self.folder, self.nbytes, self.shortest = Path(folder), nbytes, shortest
        self.notes: list[str] = []

    def apply(self, session: Session, ids: Sequence[int], reuse: Reuse, keep: int) -> Reuse:
        """Have `session`, which holds `reuse.tokens` of `ids`, hold more of them where a state of more is stored.

        The state of the first `keep` tokens is computed and stored on the way, if it is not there yet.
        """
        found = self.find(session.engine, ids, reuse.tokens, session.keep)
        if found is not None:
            session.adopt(found)
            reuse = Reuse(found.count)
        if self.shortest <= keep <= len(ids) and session.count < keep:
            session.prefill(ids[session.count : keep])
            self.put(session)
        return reuse

    def find(self, engine: Engine, ids: Sequence[int], above: int = 0, keep: Keep = USUAL) -> Session | None:
        """A session at the longest stored beginning of `ids` that has more than `above` tokens."""
        entries = [e for e in self._entries(engine) if above < e.tokens <= len(ids)]
        exact = digests(ids, [e.tokens for e in entries])
        for entry in sorted(entries, key=lambda e: -e.tokens):
            if exact[entry.tokens][: len(entry.digest)] != entry.digest:
                continue
            try:
                session = saved.load(entry.path, engine, keep)
                if session.seen.digest() != exact[entry.tokens]:
                    raise BadSession(f"{entry.path} is damaged: it is of another text than its name says")
            except BadSession as e:
                if entry.path.exists():  # gone: another process needed the room
                    self._drop(entry.path, str(e))
                continue
            session.seen.learn(ids[: entry.tokens])
            self._touch(entry.path)
            return session
        return None

    def put(self, session: Session) -> Path | None:
        """Store the session's state, and make room; where it is, or None where it could not be written."""
        name = f"{_kind(session.engine)}-{session.count}-{session.seen.digest()[:32]}{SUFFIX}"
        path = self.folder / name
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                saved.save(session, path)
        except (QuambaError, OSError) as e:
            self.notes.append(f"the state of the prompt's beginning was not stored: {e}")
            return None
        self._make_room(path)
        return path

    def _entries(self, engine: Engine) -> list[_Entry]:
        found = []
        for path in self.folder.glob(f"{_kind(engine)}-*{SUFFIX}"):
            parts = path.name.removesuffix(SUFFIX).split("-")
            if len(parts) == 4 and parts[2].isdecimal() and parts[3]:
                found.append(_Entry(path, int(parts[2]), parts[3]))
        return found

    def _make_room(self, newest: Path) -> None:
        sizes: list[tuple[float, int, Path]] = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            try:
                facts = path.stat()
                sizes.append((facts.st_mtime, facts.st_size, path))
            except OSError:
                continue  # gone
        total = sum(size for _, size, _ in sizes)
        for _, size, path in sorted(sizes, key=lambda s: (s[2] == newest, s[0])):
            if total <= self.nbytes:
                break
            path.unlink(missing_ok=True)
            total -= size

        for path in self.folder.glob(f".*{SUFFIX}.*.tmp"):  # of a process that was killed while it wrote
            try:
                if path.stat().st_mtime < time.time() - 3600:
                    path.unlink()
            except OSError:
                continue

    def _touch(self, path: Path) -> None:
        try:
            os.utime(path)
        except OSError:
            pass  # gone, or somebody else's: it is only about what goes first

    def _drop(self, path: Path, why: str) -> None:
        try:
            path.unlink(missing_ok=True)
            self.notes.append(f"dropped from the prefix store: {why}")
        except OSError as e:
            self.notes.append(f"{why}; it cannot be deleted ({e.strerror})")


def _kind(engine: Engine) -> str:
    return f"{engine.bundle.digest[:16]}-{engine.state_dtype}"
