"""From logits to the next token.

The steps, in this order (that of transformers and vLLM; llama.cpp applies temperature last):

    logit_bias          added to the named ids
    repetition_penalty  r, ids in the prompt or the answer: positive logits divided by r, others multiplied (arXiv 1909.05858)
    presence_penalty    subtracted once from every id in the answer (not the prompt), as OpenAI and vLLM define it
    frequency_penalty   subtracted as often as the id is in the answer
    temperature         logits divided by it; 0 ends here with the largest logit, the lowest id among equals
    top_k               the k most likely stay, among equals the lowest ids; 0 keeps all
    top_p               of those, the fewest most likely ones that together have at least the share p (arXiv 1904.09751)
    min_p               of those, the ones at least min_p times as likely as the likeliest (arXiv 2407.01082)

Then one draw from what is left, in float64.  Equal seeds give equal draws on every machine with equal logits.  A changed logit is
rounded to f32, as the others are.

A backend may choose instead (`Sampler.request`, csrc/cuda/sample.cu): by the same rule, with the same random number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from quamba_edge.backends.launch import EDITS, LOOK
from quamba_edge.errors import BadUsage, CheckFailed

# top_p without top_k looks at this many of the likeliest first: sorting 256,000 logits costs more than a token at 130M.
FIRST_LOOK = 1024
COLDEST = 1e-30  # lowest temperature above 0 that is left to a backend


@dataclass(frozen=True)
class Sampling:
    """How to choose a token; the defaults are greedy.  BadUsage for values without meaning."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        rules = (
            ("temperature", _real(self.temperature) and self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", _whole(self.top_k) and self.top_k >= 0, "a whole number, 0 for all"),
            ("top_p", _real(self.top_p) and 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("min_p", _real(self.min_p) and 0 <= self.min_p <= 1, "from 0 to 1"),
            (
                "repetition_penalty",
                _real(self.repetition_penalty) and self.repetition_penalty > 0,
                "more than 0, 1 for none",
            ),
            ("presence_penalty", _real(self.presence_penalty), "a finite number"),
            ("frequency_penalty", _real(self.frequency_penalty), "a finite number"),
            ("seed", self.seed is None or (_whole(self.seed) and self.seed >= 0), "a whole number, 0 or more"),
        )
        for name, fits, expected in rules:
            if not fits:
                raise BadUsage(f"{name} is {getattr(self, name)!r}: expected {expected}")
        for i, bias in self.logit_bias.items():
            # -inf forbids a token, +inf would be a way to say "always this one" that hides every other setting
            if not _whole(i) or i < 0 or not isinstance(bias, (int, float)) or math.isnan(bias) or bias == math.inf:
                raise BadUsage(f"logit_bias has {i!r}: {bias!r}; expected a token id and a number below infinity")


def _real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


class Sampler:
    """Settings and a stream of random numbers: one for each answer."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)
        self._drawn: float | None = None  # drawn, and not used yet
        # Greedy and nothing else, the usual case: one pass over the logits, an eighth of what checking and penalties take.
        neutral = sampling.repetition_penalty == 1 and not sampling.presence_penalty and not sampling.frequency_penalty
        self._plain = sampling.temperature == 0 and neutral and not sampling.logit_bias

    def pick(self, logits: np.ndarray, history: Sequence[int] = (), prompt_tokens: int = 0) -> int:
        """The next token.

        logits (V,) float32; history: prompt and answer so far, of which the first `prompt_tokens` are the prompt.
        CheckFailed when the logits hold NaN or +inf, or nothing but -inf.
        """
        if self._plain and np.ndim(logits) == 1 and len(logits):
            best = int(np.argmax(logits))  # a NaN would be the largest
            if math.isfinite(logits[best]):
                return best
        values = self._penalised(logits, history, prompt_tokens)
        if self.sampling.temperature == 0:
            return int(np.argmax(values))
        ids, chances = candidates(values, self.sampling)
        reach, draw, self._drawn = np.cumsum(chances), self._draw(), None
        place = int(np.searchsorted(reach, draw * reach[-1], side="right"))
        return int(ids[min(place, len(ids) - 1)])

    def request(self, history: Sequence[int], prompt_tokens: int) -> np.ndarray | None:
        """What a backend needs to choose the next token, f64: random number, temperature, top_p, min_p, top_k, how many logits
        change, two zeros; then of each of those its id, bias, factor and subtrahend.  None where it should not be asked.

        `answered` says that it chose; else `pick` draws with the same random number.
        """
        s, edits = self.sampling, self._edits(history, prompt_tokens)
        if 0 < s.temperature < COLDEST or s.top_k > LOOK or len(edits) > EDITS:
            return None
        draw = self._draw() if s.temperature else 0.0
        settings = [draw, s.temperature, s.top_p, s.min_p, s.top_k, len(edits), 0, 0]
        return np.concatenate([np.array(settings, np.float64), edits.reshape(-1)])

    def answered(self) -> None:
        """A backend chose with the last request's random number."""
        self._drawn = None

    def _draw(self) -> float:
        """The next random number, until it was used."""
        if self._drawn is None:
            self._drawn = float(self._random.random())
        return self._drawn

    def _edits(self, history: Sequence[int], prompt_tokens: int) -> np.ndarray:
        """f64 (n, 4): id, what is added to its logit, what divides a positive one and multiplies others, what is subtracted."""
        s, answer = self.sampling, history[prompt_tokens:]
        repeated = set(history) if s.repetition_penalty != 1 else set()
        counts = Counter(answer) if s.presence_penalty or s.frequency_penalty else Counter()
        ids = sorted({int(i) for i in (*s.logit_bias, *repeated, *counts)})
        rows = [
            (
                i,
                s.logit_bias.get(i, 0.0),
                s.repetition_penalty if i in repeated else 1.0,
                s.presence_penalty + s.frequency_penalty * counts[i] if i in counts else 0.0,
            )
            for i in ids
        ]
        return np.array(rows, np.float64).reshape(-1, 4)

    def _penalised(self, logits: np.ndarray, history: Sequence[int], prompt_tokens: int) -> np.ndarray:
        s = self.sampling
        values = np.array(logits, dtype=np.float64)
        if values.ndim != 1 or not values.size:
            raise CheckFailed(f"logits have shape {values.shape}, expected (V,)")
        if np.isnan(values).any() or values.max() in (math.inf, -math.inf):
            found = "NaN" if np.isnan(values).any() else "+inf" if values.max() == math.inf else "only -inf"
            raise CheckFailed(
                f"the model's logits hold {found}, expected finite numbers: `quamba-edge verify` finds the op"
            )
        for i in s.logit_bias:
            if i >= values.size:
                raise BadUsage(f"logit_bias names token {i}, the vocabulary ends at {values.size - 1}")
        edits = self._edits(history, prompt_tokens)
        if len(edits):
            ids, (bias, factor, less) = edits[:, 0].astype(np.int64), edits[:, 1:].T
            changed = values[ids] + bias
            with np.errstate(over="ignore"):
                changed = np.where(changed > 0, changed / factor, changed * factor) - less
                values[ids] = changed.astype(np.float32)
        if values.max() == -math.inf:
            raise BadUsage("logit_bias forbids every token")
        return values


def candidates(logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """(ids, chances) of the tokens that stay after temperature, top_k, top_p and min_p; chances relative to the likeliest.

    logits (V,) float64 with the penalties in them; sampling.temperature > 0.
    """
    # The largest becomes 0, so nothing overflows; a temperature near 0 may send the others to -inf, which is what it means.
    with np.errstate(over="ignore"):
        scaled = (logits - logits.max()) / sampling.temperature
    if sampling.top_k:
        ids = _largest(scaled, sampling.top_k)
        share = sampling.top_p * float(np.exp(scaled[ids]).sum())
    else:
        share = sampling.top_p * float(np.exp(scaled).sum())
        ids = np.arange(scaled.size) if sampling.top_p == 1 else _largest(scaled, FIRST_LOOK)
        if sampling.top_p < 1 and float(np.exp(scaled[ids]).sum()) < share:
            ids = _largest(scaled, scaled.size)
    chances = np.exp(scaled[ids])
    if sampling.top_p < 1:
        keep = int(np.searchsorted(np.cumsum(chances), share)) + 1
        ids, chances = ids[:keep], chances[:keep]
    stay = (chances >= sampling.min_p) & (chances > 0)
    return ids[stay], chances[stay]


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """Ids of the k largest values, largest first, equal ones by id."""
    if k >= values.size:
        return np.argsort(-values, kind="stable")
    cut = np.partition(values, values.size - k)[values.size - k]
    ids = np.flatnonzero(values >= cut)
    return ids[np.argsort(-values[ids], kind="stable")][:k]
