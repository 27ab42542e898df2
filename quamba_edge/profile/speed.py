"""One measurement as a visitor feels it: a prompt from an empty state, then each likeliest token fed back.

Of one sequence it goes through the session that every face uses; of several, through one program that advances them together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from quamba_edge.runtime.sampling import Sampler, Sampling
from quamba_edge.runtime.session import Engine, Session, chunks


@dataclass(frozen=True)
class Repeat:
    """Seconds to the first token, and of each decoded token; `began_ns` is when, on the clock of time.monotonic_ns."""

    first: float
    tokens: tuple[float, ...]
    began_ns: int = 0

    @property
    def prompt_window(self) -> tuple[int, int]:
        """When the prompt was read, nanoseconds."""
        return self.began_ns, self.began_ns + round(1e9 * self.first)

    @property
    def answer_window(self) -> tuple[int, int]:
        """When the tokens were decoded."""
        begin = self.prompt_window[1]
        return begin, begin + round(1e9 * sum(self.tokens))


class Texts(Protocol):
    """Sequences that go on together."""

    def reset(self) -> None: ...
    def prefill(self, tokens: np.ndarray) -> np.ndarray: ...
    def decode(self, tokens: np.ndarray, sampler: Sampler) -> np.ndarray: ...


class One:
    """A session as `Texts`."""

    def __init__(self, engine: Engine):
        self.session = Session(engine)

    def reset(self) -> None:
        self.session.reset()

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """tokens (1, L) → logits (1, V)."""
        return self.session.prefill(tokens[0])[None]

    def decode(self, tokens: np.ndarray, sampler: Sampler) -> np.ndarray:
        """tokens (1) → the ones that follow, chosen by the backend where it can."""
        chosen = self.session.choose(int(tokens[0]), partial(sampler.request, (), 0))
        if chosen is None:
            assert self.session.logits is not None
            return likeliest(sampler, self.session.logits[None])
        sampler.answered()
        return np.asarray([chosen], np.int32)


class Together:
    """S sequences of one program."""

    def __init__(self, engine: Engine, sequences: int):
        self.engine, self.sequences = engine, sequences

    def reset(self) -> None:
        slot = self.engine.slot(self.sequences)
        slot.release()
        slot.state.write(None)

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """tokens (S, L) → logits (S, V) of what follows the last."""
        ids, start = self.engine.checked(tokens), 0
        sizes = chunks(ids.shape[1])
        for i, size in enumerate(sizes):
            plan = self.engine.plan(self.sequences, size, "last" if i == len(sizes) - 1 else "none")
            plan.run(ids[:, start : start + size])
            start += size
        return plan.logits()[:, : self.engine.vocab_size]

    def decode(self, tokens: np.ndarray, sampler: Sampler) -> np.ndarray:
        """tokens (S) → the ones that follow."""
        return likeliest(sampler, self.prefill(tokens[:, None]))


def texts(engine: Engine, sequences: int) -> Texts:
    """That many sequences of an engine."""
    return One(engine) if sequences == 1 else Together(engine, sequences)


def likeliest(sampler: Sampler, logits: np.ndarray) -> np.ndarray:
    """logits (S, V) → tokens (S)."""
    return np.asarray([sampler.pick(row) for row in logits], np.int32)


def run(of: Texts, prompts: np.ndarray, gen_len: int, clock: Callable[[], int] = time.monotonic_ns) -> Repeat:
    """One repeat: prompts (S, L) from an empty state, then gen_len tokens each.  The clock counts nanoseconds."""
    sampler = Sampler(Sampling())
    of.reset()
    marks = [clock()]
    tokens = likeliest(sampler, of.prefill(prompts))
    marks.append(clock())
    for _ in range(gen_len):
        tokens = of.decode(tokens, sampler)
        marks.append(clock())
    spans: Sequence[float] = (np.diff(marks) / 1e9).tolist()
    return Repeat(spans[0], tuple(spans[1:]), marks[0])
