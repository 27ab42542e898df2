"""Earlier states of a session, kept in memory: a recurrent state cannot be cut back, so going back means having kept one.

    text   ....|....|..P.....|....|.A..P...|      | every N tokens      P end of a prompt      A end of an answer

Going back costs reading what lies between the snapshot and the point: less than N tokens, and none at the ends of turns, where
undo and retry go.  When there is no more room the oldest of the regular ones goes first, and then the oldest turn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from quamba_edge.runtime.state import State


@dataclass(frozen=True)
class Keep:
    """How much to keep: a snapshot every `every` tokens, at most `most` of them, at most `nbytes` together; `most` = 0: none.

    256 tokens are read again in about the time that two or three are generated; 32 snapshots then reach back 8,192 tokens.
    """

    every: int = 256
    most: int = 32
    nbytes: int = 256 << 20

    def room(self, size: int) -> int:
        """Snapshots of that many bytes which may be kept."""
        return min(self.most, self.nbytes // max(1, size))


USUAL = Keep()  # of a conversation
NOTHING = Keep(most=0)  # of a measurement


@dataclass(frozen=True)
class Snapshot:
    """The state after `count` tokens.  Its arrays are never written to; `logits` (V,) of what follows, where they were computed."""

    count: int
    state: State
    logits: np.ndarray | None
    turn: bool


class Ring:
    """Snapshots of one text, by their place in it."""

    def __init__(self, every: int, room: int):
        self.every, self.room = every, room
        self._kept: dict[int, Snapshot] = {}

    def counts(self) -> list[int]:
        """Where the snapshots are, the latest first."""
        return sorted(self._kept, reverse=True)

    def due(self, count: int, ahead: int) -> bool:
        """Whether to keep the state at `count` before `ahead` more tokens are read."""
        return bool(self.room) and count + ahead - max((0, *self._kept)) > self.every and count not in self._kept

    def lacks(self, count: int) -> bool:
        """Whether the end of a turn at `count` is still to be kept; one that was kept as a regular one becomes one of a turn."""
        found = self._kept.get(count)
        if found is not None and found.logits is not None:
            self._kept[count] = replace(found, turn=True)
            return False
        return bool(self.room)

    def add(self, snapshot: Snapshot) -> None:
        self._kept[snapshot.count] = snapshot
        while len(self._kept) > self.room:
            others = [s for s in self._kept.values() if s is not snapshot] or [snapshot]
            del self._kept[min(others, key=lambda s: (s.turn, s.count)).count]

    def before(self, count: int, logits_at: int | None = None) -> Snapshot | None:
        """The latest at or before `count`; at `logits_at` only one that has its logits."""
        fits = [s for s in self._kept.values() if s.count <= count and (s.count != logits_at or s.logits is not None)]
        return max(fits, key=lambda s: s.count, default=None)

    def cut(self, count: int) -> None:
        """Drop those after `count`."""
        self._kept = {n: s for n, s in self._kept.items() if n <= count}

    def copy(self) -> Ring:
        made = Ring(self.every, self.room)
        made._kept = dict(self._kept)
        return made

    @property
    def nbytes(self) -> int:
        """Memory of what is kept."""
        return sum(s.state.nbytes + (s.logits.nbytes if s.logits is not None else 0) for s in self._kept.values())
