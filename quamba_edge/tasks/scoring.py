"""Log-likelihoods of many continuations, each context read once.

A recurrent model's past is a state of constant size.  So a question with four answers is read once and its state taken back four
times; what many contexts begin with (the five examples of an MMLU subject) is read once for all.  Sequences of equal length go
together, none is padded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from quamba_edge.tasks.reader import BLOCK, Reader, log_chances
from quamba_edge.tasks.tokens import Request

Ids = tuple[int, ...]
T = TypeVar("T")
Progress = Callable[[int], None]
WAVE = 256  # contexts whose continuations are sorted by length together: more fill batches better, and are heard of less often


@dataclass(frozen=True)
class Score:
    """Of a continuation: the sum of its tokens' log p in nats, and whether greedy decoding would write it."""

    logp: float
    greedy: bool


def score(reader: Reader, requests: Sequence[Request], progress: Progress = lambda done: None) -> list[Score]:
    """One score for each request, in their order; `progress` is told how many are done."""
    asked: dict[Ids, list[int]] = defaultdict(list)  # context → requests
    for i, request in enumerate(requests):
        asked[request.context].append(i)
    found: dict[int, Score] = {}
    for stem, contexts in stems(asked):
        before = reader.read(np.array([stem]), None)[0][0] if stem else None
        ordered = sorted(contexts, key=lambda c: (-len(c), c))
        room = min(reader.room, WAVE)
        for first in range(0, len(ordered), room):
            wave = {c: asked[c] for c in ordered[first : first + room]}
            for i, one in _wave(reader, requests, wave, len(stem), before):
                found[i] = one
                progress(len(found))
    return [found[i] for i in range(len(requests))]


def stems(contexts: Iterable[Ids]) -> Iterator[tuple[Ids, list[Ids]]]:
    """Contexts grouped by their first BLOCK tokens, with the whole blocks that all of a group begin with.

    Whole blocks, because a context is read in chunks of BLOCK first: its state is the same whether the stem was shared or not.
    """
    groups: dict[Ids, list[Ids]] = defaultdict(list)
    for context in contexts:
        groups[context[:BLOCK] if len(context) > BLOCK else ()].append(context)
    for begin, group in groups.items():
        length = 0
        if begin and len(group) > 1:
            low, high = min(group), max(group)  # what these two share all share
            length = next((i for i, (a, b) in enumerate(zip(low, high)) if a != b), min(len(low), len(high)))
            length = min(length, min(map(len, group)) - 1) // BLOCK * BLOCK  # at least one token is left to read
        yield group[0][:length], group


def _wave(
    reader: Reader, requests: Sequence[Request], asked: dict[Ids, list[int]], skip: int, before: Any
) -> Iterator[tuple[int, Score]]:
    """Read the contexts beyond their first `skip` tokens, then from their states every continuation."""
    states: dict[Ids, Any] = {}
    firsts: dict[int, Score] = {}  # a continuation's first token follows from the context alone
    for group in batches(asked, len, reader.batches):
        ids = np.array([c[skip:] for c in group])
        after, logits = reader.read(ids, None if before is None else [before] * len(group))
        for context, state, row in zip(group, after, logits, strict=True):
            heads = np.array([requests[i].continuation[0] for i in asked[context]])
            for i, p, b in zip(asked[context], *log_chances(row[None], heads), strict=True):
                if len(requests[i].continuation) == 1:
                    yield i, Score(float(p), bool(b))
                else:
                    firsts[i], states[context] = Score(float(p), bool(b)), state
    for several in batches(firsts, lambda i: len(requests[i].continuation), reader.batches):
        ids = np.array([requests[i].continuation for i in several])
        chances, likeliest = reader.follow(ids, [states[requests[i].context] for i in several])
        for i, p, b in zip(several, chances, likeliest, strict=True):
            yield i, Score(firsts[i].logp + float(p.sum()), firsts[i].greedy and bool(b.all()))


def batches(items: Iterable[T], length: Callable[[T], int], sizes: Sequence[int]) -> Iterator[list[T]]:
    """Groups of items of equal length, of the allowed sizes (largest first, the last is 1)."""
    equal: dict[int, list[T]] = defaultdict(list)
    for item in items:
        equal[length(item)].append(item)
    for group in equal.values():
        while group:
            size = next(s for s in sizes if s <= len(group))
            yield group[:size]
            group = group[size:]
