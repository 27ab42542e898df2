"""Log-probabilities of chosen tokens and their rivals, from logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Chance:
    """ln p of a token, as the model gives it: before bias, penalties and temperature.  `top`: (id, ln p), likeliest first.

    `logprob` is None for the first token of a text, which nothing predicts.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


def chance(logits: np.ndarray, token: int, top: int) -> Chance:
    """Of `token` after logits f32 (V,), with the `top` likeliest, equal ones by id."""
    wide = logits.astype(np.float64)
    peak = wide.max()
    logs = wide - (peak + np.log(np.exp(wide - peak).sum()))
    best: list[int] = []
    if top:
        top = min(top, logs.size)
        cut = np.partition(logs, logs.size - top)[logs.size - top]
        rivals = np.flatnonzero(logs >= cut)
        best = rivals[np.argsort(-logs[rivals], kind="stable")][:top].tolist()
    return Chance(int(token), float(logs[token]), tuple((i, float(logs[i])) for i in best))


class Scored:
    """The chances of a text's tokens, while it is read piece by piece."""

    def __init__(self, ids: Sequence[int], top: int) -> None:
        self._ids, self._top = ids, top
        self.chances: list[Chance] = [Chance(ids[0], None)]

    def read(self, logits: np.ndarray) -> None:
        """Logits (T, V) after each of the next T tokens; those after the last one predict what is not in the text."""
        for row in logits:
            if len(self.chances) < len(self._ids):
                self.chances.append(chance(row, self._ids[len(self.chances)], self._top))
