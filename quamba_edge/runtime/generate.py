"""Generation is one iterator of small frozen facts; the command line, the server and the demos are loops over it.

for step in generate(session, prompt, tokenizer, max_tokens=64):
    print(step.text, end="", flush=True)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from quamba_edge.errors import BadUsage
from quamba_edge.runtime.sampling import Sampler, Sampling
from quamba_edge.runtime.seen import Reuse
from quamba_edge.runtime.tokenizer import Tokenizer


class Session(Protocol):
    """What generation needs of a session (runtime/session.py): logits are (V,) float32."""

    @property
    def tokens(self) -> list[int]: ...
    @property
    def count(self) -> int: ...
    @property
    def logits(self) -> np.ndarray | None: ...
    def prefill(self, tokens: Sequence[int]) -> np.ndarray: ...
    def choose(self, token: int, request: Callable[[], np.ndarray | None]) -> int | None: ...
    def seek(self, ids: Sequence[int]) -> Reuse: ...
    def mark(self) -> None: ...


class Prefixes(Protocol):
    """Where states of prompts' beginnings are kept (runtime/prefixes.py)."""

    def apply(self, session: Any, ids: Sequence[int], reuse: Reuse, keep: int) -> Reuse: ...


@dataclass(frozen=True)
class Step:
    """One token, and what is known by then.

    token             the id that was chosen
    text              what became printable with it; may be "", and on the last step holds all that was held back
    reason            None while it goes on; on the last step "stop" (a stop string), "eos" or "length"
    tokens            chosen so far, this one included
    prompt_tokens     tokens of the prompt, reused ones included
    reused_tokens     of these, the ones whose state was at hand: 0 for a fresh session
    ttft_ms           from the call to the first token
    decode_tps        tokens per second after the first; None until there is a second
    prefilled_tokens  tokens of the prompt that were read for this answer: the others
    reuse_note        why more could not be reused, where the session held some text; None when all of it was
    """

    token: int
    text: str
    reason: str | None
    tokens: int
    prompt_tokens: int
    reused_tokens: int
    ttft_ms: float
    decode_tps: float | None
    prefilled_tokens: int
    reuse_note: str | None = None


def generate(
    session: Session,
    prompt: Sequence[int],
    tokenizer: Tokenizer,
    *,
    sampling: Sampling | None = None,
    max_tokens: int = 256,
    stop: Sequence[str] = (),
    eos: Collection[int] = (),
    follows: bool = False,
    prefixes: Prefixes | None = None,
    prefix_tokens: int = 0,
) -> Iterator[Step]:
    """Continue `prompt`, token by token.

    prompt is the whole text so far, of which only what the session has no state for is read: all of its own text, or the part up
    to a snapshot, is reused (runtime/session.py).  With `follows` it is what comes after the session's text instead, and may be
    empty: a session restored from a file goes on without any text.
    prefixes, prefix_tokens: a store of states, where one may help; that of the prompt's first `prefix_tokens` is put there.
    The text ends before the stop string that is complete first, among several the one that began first.  An `eos` token
    ends the answer and is not text.  The last token chosen is not fed to the session: it is part of the next prompt.
    BadUsage for an empty prompt, an empty stop string, or max_tokens < 1.
    """
    ids = [int(t) for t in prompt]
    if not ids and not (follows and session.logits is not None):
        raise BadUsage("the prompt is empty: there is nothing to continue; give text, or the model's first token")
    if max_tokens < 1:
        raise BadUsage(f"max_tokens is {max_tokens}: expected 1 or more")
    watch = StopWatch(stop)
    read = partial(_read, session, ids, follows, prefixes, prefix_tokens)
    return _steps(session, read, tokenizer, Sampler(sampling or Sampling()), max_tokens, watch, frozenset(eos))


def _read(
    session: Session, ids: list[int], follows: bool, prefixes: Prefixes | None, prefix_tokens: int
) -> tuple[np.ndarray, list[int], int, Reuse]:
    """Read the prompt: logits of what follows it, its known tokens, how many it has in all, and how many were at hand."""
    if follows:
        known, reuse, rest = [*session.tokens, *ids], Reuse(session.count), ids
    else:
        reuse = session.seek(ids)
        if prefixes is not None:
            reuse = prefixes.apply(session, ids, reuse, prefix_tokens)
        known, rest = list(ids), ids[session.count :]
    session.mark()
    logits = session.prefill(rest) if rest else session.logits
    assert logits is not None, "seek is at the end of a prompt only with its logits"
    return logits, known, session.count, reuse


def _steps(
    session: Session,
    read: Callable[[], tuple[np.ndarray, list[int], int, Reuse]],
    tokenizer: Tokenizer,
    sampler: Sampler,
    max_tokens: int,
    watch: StopWatch,
    eos: frozenset[int],
) -> Iterator[Step]:
    mark = time.perf_counter()
    logits, history, length, reuse = read()  # type: np.ndarray | None, list[int], int, Reuse
    chosen: int | None = None
    known = len(history)
    stream, first, busy = tokenizer.stream(), 0.0, 0.0
    for count in range(1, max_tokens + 1):
        if chosen is None:
            assert logits is not None, "a session that leaves the choice to us has logits"
            token = sampler.pick(logits, history, known)
        else:
            token = chosen
            sampler.answered()
        history.append(token)
        text = watch.push("" if token in eos else stream.push(token))
        reason = "stop" if watch.stopped else "eos" if token in eos else "length" if count == max_tokens else None
        if reason in ("eos", "length"):
            text += watch.push(stream.flush()) + watch.flush()
            reason = "stop" if watch.stopped else reason
        spent = time.perf_counter() - mark
        first, busy = (first, busy + spent) if count > 1 else (spent, 0.0)
        speed = (count - 1) / busy if busy > 0 else None
        numbers = length, reuse.tokens, 1000 * first, speed, length - reuse.tokens
        yield Step(token, text, reason, count, *numbers, reuse.note)
        if reason:
            return
        mark = time.perf_counter()  # what the caller did with the step is not our time
        if count == 1:
            session.mark()  # here an answer is tried again; after the first token has gone out, so that it comes no later
        chosen = session.choose(token, partial(sampler.request, history, known))
        logits = session.logits if chosen is None else None


class StopWatch:
    """Lets text through up to a stop string, and holds back what may be the beginning of one.

    What comes out, concatenated, depends on the whole text alone and not on how it was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or not all(isinstance(s, str) and s for s in stops):
            raise BadUsage(f"stop strings are {stops!r}: expected a list of texts, none of them empty")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Text that is certain to come before any stop string; sets `stopped` when one is complete."""
        if self.stopped:
            return ""
        self._held += piece
        found = [(i + len(s), i) for s in self._stops if (i := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            out, self._held = self._held[: min(found)[1]], ""
            return out
        keep = max((_overlap(self._held, s) for s in self._stops), default=0)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def flush(self) -> str:
        """The text still held back: no more comes, so it began no stop string."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins, not counting all of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
