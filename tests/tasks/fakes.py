"""A tokenizer of words and a recurrent model of a few numbers, whose scores can be computed one token after the other."""

from __future__ import annotations

import re

import numpy as np

from quamba_edge.tasks.reader import Reader
from quamba_edge.tasks.tokens import Request

VOCAB = 31
WIDTH = 6


class Words:
    """Ids of words with the space before them, as byte-level vocabularies have; 0 begins texts, the last id is for all others."""

    def __init__(self, size: int = VOCAB):
        self.size, self.known = size, {"<|endoftext|>": 0}

    def encode(self, text: str) -> list[int]:
        pieces = re.findall(r"<\|endoftext\|>| ?\w+|\s+(?!\S)|\s|[^\w\s]", text)
        return [self.known.setdefault(p, min(len(self.known), self.size - 1)) for p in pieces]

    def decode(self, ids: list[int]) -> str:
        spelled = {i: p for p, i in self.known.items()}
        return "".join(spelled.get(i, "?") for i in ids)


class Tiny(Reader):
    """h ← tanh(h / 2 + E[token]), logits W h; row by row, so a batch gives each sequence the very numbers it has alone.

    `steps` is what was read: the shape of every chunk.
    """

    name = "tiny"

    def __init__(self, vocab: int = VOCAB, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.vocab_size, self.state_bytes = vocab, 8 * WIDTH
        self._embedding, self._head = rng.normal(0, 1, (vocab, WIDTH)), rng.normal(0, 1.5, (WIDTH, vocab))
        self.steps: list[tuple[int, int]] = []
        self.working: np.ndarray = np.zeros((1, WIDTH))

    def begin(self, sequences, before):
        self.working = np.zeros((sequences, WIDTH)) if before is None else np.stack(before)
        assert self.working.shape == (sequences, WIDTH)

    def step(self, ids, logits):
        self.steps.append(ids.shape)
        out = np.empty((*ids.shape, self.vocab_size))
        for t in range(ids.shape[1]):
            for s in range(len(ids)):
                self.working[s] = np.tanh(self.working[s] / 2 + self._embedding[ids[s, t]])
                out[s, t] = self.working[s] @ self._head
        return {"all": out, "last": out[:, -1:], "none": np.empty(0)}[logits]

    def end(self, sequences):
        return [row.copy() for row in self.working]

    @property
    def tokens_read(self) -> int:
        return sum(s * t for s, t in self.steps)


def by_hand(reader: Tiny, request: Request) -> tuple[float, bool]:
    """(log p, greedy) of a request, read alone and token by token."""
    reader.begin(1, None)
    ids, total, greedy = [*request.context, *request.continuation], 0.0, True
    for i, token in enumerate(ids[:-1]):
        logits = reader.step(np.array([[token]]), "last")[0, 0]
        if i >= len(request.context) - 1:
            total += logits[ids[i + 1]] - np.log(np.exp(logits).sum())
            greedy &= int(logits.argmax()) == ids[i + 1]
    return total, greedy
