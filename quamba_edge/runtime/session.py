"""Session = engine + the state of one text, with what it takes to go on from it, back in it, and elsewhere with it.

A state is the whole text in constant size, but it cannot be cut back: `seek` and `rewind` return to a snapshot (runtime/snapshots.py)
and read what is missing again.  runtime/saved.py puts a session into a file.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from quamba_edge.errors import BadUsage
from quamba_edge.runtime.engine import CHUNKS, Engine, chunks
from quamba_edge.runtime.plan import Plan
from quamba_edge.runtime.seen import Reuse, Seen
from quamba_edge.runtime.snapshots import NOTHING, Keep, Ring, Snapshot
from quamba_edge.runtime.state import State, state_bytes

__all__ = ["CHUNKS", "Engine", "Reuse", "Session", "chunks"]


class Session:
    """One text: feed tokens, get the logits of the next.

    tokens  those its state has seen; of a session loaded from a file perhaps only the last ones (`seen.whole` says)
    count   how many it has seen in all
    logits  f32 (vocab_size,) of what follows; None when it is empty, or restored without them
    """

    def __init__(self, engine: Engine, keep: Keep = NOTHING):
        self.engine, self.keep = engine, keep
        self.seen = Seen()
        self._logits: np.ndarray | None = None
        self._late: Plan | None = None  # the plan that has the logits, where nobody has asked for them yet
        room = self.keep.room(state_bytes(engine.specs, 1, engine.state_dtype) + 4 * engine.vocab_size)
        self.snapshots = Ring(self.keep.every, room)
        self._parked: State | None = None  # the state, while another session runs; None: that before the first token

    @property
    def tokens(self) -> list[int]:
        return self.seen.tokens

    @property
    def count(self) -> int:
        return self.seen.count

    @property
    def logits(self) -> np.ndarray | None:
        if self._late is not None:
            self.logits = self._late.logits()[0, : self.engine.vocab_size]
        return self._logits

    @logits.setter
    def logits(self, logits: np.ndarray | None) -> None:
        self._logits, self._late = logits, None

    def prefill(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Consume tokens (at least one); logits f32 (vocab_size,) of what follows the last.

        Stopped half-way by an exception, it is at its latest snapshot, or empty where it has none.
        """
        (last,) = self._consume(tokens, "last")
        self.logits = last[0]
        return self.logits

    def decode(self, token: int) -> np.ndarray:
        """Consume one token; logits f32 (vocab_size,) of what follows."""
        return self.prefill([token])

    def choose(self, token: int, request: Callable[[], np.ndarray | None]) -> int | None:
        """Consume one token, and have the backend choose what follows by `request()`; None where that is left to the host.

        The logits stay where they are until somebody asks for them.
        """
        asked = request() if self.engine.plan(1, 1, "last").chooser is not None else None
        if asked is None:
            self.decode(token)
            return None
        (chosen,) = self._consume([token], "last", asked)
        self._late = self.engine.plan(1, 1, "last")
        return chosen

    def read(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Consume tokens (at least one); logits f32 (T, vocab_size) of what follows each, to score a text while it is read."""
        every = np.concatenate(list(self._consume(tokens, "all")))
        self.logits = every[-1].copy()
        return every

    def reset(self) -> None:
        """Forget everything."""
        slot = self.engine.slot(1)
        if slot.holder is not None and slot.holder() is self:
            slot.holder = None
        self.seen, self.logits, self._parked = Seen(), None, None
        self.snapshots.cut(-1)

    def mark(self) -> None:
        """Keep the state as it is now, as the end of a turn, so that going back to it costs nothing."""
        if self.count and self.snapshots.lacks(self.count):
            self._keep(turn=True)

    def seek(self, ids: Sequence[int]) -> Reuse:
        """Be at the longest beginning of `ids` that is at hand, so that `prefill(ids[reuse.tokens:])` reads only the rest.

        At all of `ids` only with their logits; then there is nothing to prefill.
        """
        if not self.count:
            return Reuse(0)
        same = self.seen.shared(ids)
        if same == self.count and (same < len(ids) or self.logits is not None):
            return Reuse(same)
        found = self.snapshots.before(same, logits_at=len(ids))
        note = None if found is not None and found.count == same else self._why(same, len(ids), found)
        self._back_to(found)
        return Reuse(self.count, note)

    def rewind(self, count: int) -> int:
        """Go back to after the first `count` tokens; how many had to be read again, at most `keep.every` as far as snapshots reach.

        Bit-equal to the state that was there where none had to be; else equal but for the rounding of other chunk sizes.
        BadUsage beyond the session's text, or where the tokens to read are not known any more.
        """
        if not 0 <= count <= self.count:
            raise BadUsage(f"cannot rewind to token {count}: the session has seen {self.count}")
        if count == self.count:
            return 0
        found = self.snapshots.before(count, logits_at=count)
        if count and found is None and not self.seen.whole:
            raise BadUsage(
                f"cannot rewind to token {count}: of {self.count} only the last {len(self.tokens)} are known, and no "
                "snapshot is that old; give the whole text as the prompt"
            )
        again = self.seen.known(found.count if found else 0, count) if count else []
        self._back_to(found if count else None)
        if again:
            self.prefill(again)
        return len(again)

    def branch(self) -> Session:
        """Another session with the same past, snapshots included (their memory is shared)."""
        other = Session(self.engine, self.keep)
        other.seen, other.logits, other.snapshots = self.seen.copy(), self.logits, self.snapshots.copy()
        other._parked = self.state() if self.count else None
        return other

    def state(self) -> State:
        """A copy of the state after `tokens`."""
        self._hold()
        return self.engine.slot(1).state.read()

    def restore(self, state: State, tokens: Sequence[int] | Seen, logits: np.ndarray | None = None) -> None:
        """Continue from a state that `state()` gave after `tokens`, here or in another session; BadUsage if it does not fit."""
        slot = self.engine.slot(1)
        slot.release()
        slot.state.write(state)
        slot.holder = weakref.ref(self)
        self.seen = tokens if isinstance(tokens, Seen) else Seen([int(t) for t in tokens])
        self.logits, self._parked = logits, None
        self.snapshots.cut(-1)

    def adopt(self, other: Session) -> None:
        """Go on from where another session of this engine is, which ends there; snapshots of this one's text go."""
        self.restore(other.state(), other.seen, other.logits)
        self.snapshots = other.snapshots

    def park(self, state: State) -> None:
        """Keep the state on the host: another session takes the working one, and its next run the logits' place."""
        self._parked, self.logits = state, self.logits

    def _hold(self) -> None:
        """Have the working state be this session's."""
        slot = self.engine.slot(1)
        if slot.holder is not None and slot.holder() is self:
            return
        slot.release()
        slot.state.write(self._parked)
        slot.holder = weakref.ref(self)
        slot.spare, self._parked = self._parked, None

    def _consume(
        self, tokens: Sequence[int] | np.ndarray, logits: str, request: np.ndarray | None = None
    ) -> Iterator[Any]:
        """Run the chunks; of each, or only of the last, its logits (T, vocab_size) or (1, vocab_size).

        With a request, for a single token: what the backend chose.
        """
        ids = self.engine.checked(tokens)
        if ids.ndim != 1 or not len(ids):
            raise BadUsage("a prompt has at least one token: give some text, or the model's own begin-of-text token")
        self._hold()
        sizes, start = chunks(len(ids)), 0
        try:
            for i, size in enumerate(sizes):
                if self.snapshots.due(self.count, size):
                    self._keep(turn=False)
                wanted = logits if logits == "all" or i == len(sizes) - 1 else "none"
                self.logits = None  # not of this place any more
                plan = self.engine.plan(1, size, wanted)
                chosen = None
                if request is None:
                    plan.run(ids[None, start : start + size])
                else:
                    chosen = plan.choose(ids[None, start : start + size], request)
                self.seen.push(ids[start : start + size].tolist())
                start += size
                if wanted != "none":
                    yield plan.logits()[:, : self.engine.vocab_size] if request is None else chosen
        except BaseException:
            self._back_to(self.snapshots.before(self.count))  # a chunk that stopped half-way leaves a state of no text
            raise

    def _keep(self, turn: bool) -> None:
        self.snapshots.add(Snapshot(self.count, self.state(), self.logits, turn))

    def _back_to(self, found: Snapshot | None) -> None:
        """The session as it was at a snapshot; at None, empty."""
        if found is None:
            return self.reset()
        slot = self.engine.slot(1)
        if slot.holder is None or slot.holder() is not self:
            slot.release()
            slot.holder = weakref.ref(self)
        slot.state.write(found.state)
        self._parked = None
        self.seen.cut(found.count)
        self.logits = found.logits
        self.snapshots.cut(found.count)

    def _why(self, same: int, length: int, found: Snapshot | None) -> str:
        """Why not all that the prompt shares with the session's text is reused."""
        if same == length:
            differs = f"the prompt ends at token {length}, the session's text goes on to {self.count}"
        elif same or self.seen.whole:
            differs = f"the prompt differs from the session's text at token {same + 1} of {length}"
        else:
            differs = f"the prompt of {length} tokens does not begin with the {self.seen.anchor[0]} that the session was loaded with"
        if same == 0:
            return differs
        oldest = min(self.snapshots.counts(), default=0)
        if found is not None:
            return f"{differs}; the nearest snapshot before it is at token {found.count}"
        return f"{differs}, " + (
            f"before the oldest snapshot, at token {oldest}" if oldest else "and no snapshot was kept"
        )
