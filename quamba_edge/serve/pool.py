"""The states of conversations, kept so that the next request of each reads only what is new in it.

At most `most` sessions exist, those in use included; the least recently used idle one makes room.  A request goes on with the session
whose whole text begins its prompt.  Where the prompt leaves a session's text half-way (an edit, a retry, another question after the
same system prompt) it goes on with a branch from the nearest snapshot, and the session itself stays as it is.

Tokens decide, and where the prompt is text also the text itself: a model may write its words in other tokens than the tokenizer would
choose, and what it wrote is what its state has seen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from quamba_edge.errors import BadUsage
from quamba_edge.runtime.session import Session
from quamba_edge.runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the text that they were made from where it was text."""

    ids: list[int]
    text: str | None = None


@dataclass
class Kept:
    """A session of the pool.  `text` is what its state has seen, as of its last answer; `used` on the clock time.time()."""

    id: str
    session: Session
    text: str = ""
    busy: bool = True
    used: float = field(default_factory=time.time)


@dataclass(frozen=True)
class _Match:
    """`count` tokens of a session can be reused for a prompt that then reads `ids`; all it has (`whole`), or up to a snapshot."""

    count: int
    whole: bool
    ids: list[int]


class Pool:
    """Sessions made by `make`, at most `most` of them."""

    def __init__(self, make: Callable[[], Session], tokenizer: Tokenizer, most: int) -> None:
        if most < 1:
            raise BadUsage(f"--max-sessions is {most}: expected 1 or more")
        self._make, self._tokenizer, self.most = make, tokenizer, most
        self._kept: dict[str, Kept] = {}  # least recently used first
        self._count = 0

    def take(self, prompt: Prompt, fresh: bool = False) -> tuple[Kept, list[int]]:
        """A session for this prompt, busy until given back, and the prompt's ids as it is to read them; with `fresh` an empty one."""
        found = [] if fresh else [(m, k) for k in self._kept.values() if (m := self._match(k, prompt)) is not None]
        if not found:
            return self.add(self._make()), prompt.ids
        match, kept = max(found, key=lambda pair: (pair[0].count, pair[0].whole))
        if match.whole:
            kept.busy = True
            return kept, match.ids
        return self.add(kept.session.branch()), match.ids

    def _match(self, kept: Kept, prompt: Prompt) -> _Match | None:
        """What a session can do for a prompt, None for nothing."""
        session = kept.session
        same = session.seen.shared(prompt.ids)
        if same == session.count > 0 and not kept.busy and (same < len(prompt.ids) or session.logits is not None):
            return _Match(same, True, prompt.ids)
        snapshot = session.snapshots.before(same, logits_at=len(prompt.ids))
        best = _Match(snapshot.count, False, prompt.ids) if snapshot is not None and snapshot.count else None
        written = self._written(kept, prompt.text) if prompt.text is not None and session.seen.whole else None
        if written is not None and (best is None or written.count > best.count):
            best = written
        return best

    def _written(self, kept: Kept, text: str) -> _Match | None:
        """The same by text: what the session has read is the beginning of `text`, in whatever tokens."""
        held, common = kept.session.tokens, len(os.path.commonprefix([kept.text, text]))
        ends = [] if kept.busy or not kept.text else [len(held)]
        for count in (*ends, *kept.session.snapshots.counts()):
            begins = kept.text if count == len(held) and ends else self._tokenizer.decode(held[:count])
            if 0 < len(begins) <= common and len(begins) < len(text) and text.startswith(begins):
                return _Match(count, count in ends, [*held[:count], *self._tokenizer.encode(text[len(begins) :])])
        return None

    def add(self, session: Session) -> Kept:
        """Keep a session, busy for now.  There must be fewer than `most` busy ones."""
        while len(self._kept) >= self.most:
            idle = next((k for k in self._kept.values() if not k.busy), None)
            if idle is None:
                raise BadUsage(f"all {self.most} sessions are in use: start the server with a larger --max-sessions")
            del self._kept[idle.id]
        self._count += 1
        kept = Kept(f"s{self._count}", session)
        self._kept[kept.id] = kept
        return kept

    def give(self, kept: Kept) -> None:
        """Back in the pool, most recently used; an empty one is dropped."""
        self._kept.pop(kept.id, None)
        if kept.session.count:
            kept.text = self._tokenizer.decode(kept.session.tokens) if kept.session.seen.whole else ""
            kept.busy, kept.used = False, time.time()
            self._kept[kept.id] = kept

    def find(self, id: str) -> Kept:
        """The idle session of that name.  BadUsage when there is none, or it is in use."""
        kept = self._kept.get(id)
        if kept is None:
            raise BadUsage(f"there is no session {id[:40]!r}; GET /v1/sessions lists them")
        if kept.busy:
            raise BadUsage(f"session {id!r} is in use by a request: wait for its answer")
        return kept

    def drop(self, id: str) -> None:
        """Forget it."""
        del self._kept[self.find(id).id]

    def list(self) -> Sequence[Kept]:
        """All of them, least recently used first."""
        return list(self._kept.values())

    def __len__(self) -> int:
        return len(self._kept)
