"""Scores to numbers: accuracies by lm-eval's rules, their standard errors, and 95 % intervals.

acc       the likeliest continuation is the right one (the first of equals); of a single continuation: greedy decoding writes it
acc_norm  the same after dividing each log p by the number of characters of the answer, which is what lm-eval's code divides by
acc_bytes the same by UTF-8 bytes; differs only where an answer has characters beyond ASCII
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quamba_edge.tasks.prompts import Question
from quamba_edge.tasks.scoring import Score

NORMED = ("hellaswag", "piqa", "arc_easy", "arc_challenge")  # tasks whose lm-eval files ask for acc_norm too
BY_SIZE = {"blimp": False, "mmlu": True}  # of tasks with subtasks: does a large one count for more?
RESAMPLES = 1000
Z95 = 1.959963984540054  # 97.5th percentile of the normal distribution


@dataclass(frozen=True)
class Part:
    """What was right in a task or a subtask: metric → one 0 or 1 for each question; log p of single continuations."""

    right: Mapping[str, np.ndarray]
    logp: np.ndarray | None = None

    @property
    def n(self) -> int:
        return len(self.right["acc"])


def part(task: str, questions: Sequence[Question], scores: Sequence[Sequence[Score]]) -> Part:
    """questions[i] was answered with scores[i], one score for each of its pairs."""
    if all(len(q.pairs) == 1 for q in questions):
        written = np.array([s[0].greedy for s in scores], float)
        return Part({"acc": written}, np.array([s[0].logp for s in scores]))
    ways: dict[str, Callable[[str], int]] = {"acc": lambda a: 1}
    if task in NORMED:
        ways |= {"acc_norm": len, "acc_bytes": lambda a: len(a.encode())}
    right = {}
    for name, size in ways.items():
        sizes = [np.array([max(1, size(a)) for a in q.answers], float) for q in questions]
        chosen = [np.argmax([s.logp for s in found] / size) for found, size in zip(scores, sizes, strict=True)]
        right[name] = np.array([c == q.gold for c, q in zip(chosen, questions, strict=True)], float)
    return Part(right)


def summarize(task: str, parts: Mapping[str, Part]) -> dict[str, Any]:
    """{acc, acc_stderr, acc_ci95, the same of acc_norm and acc_bytes, perplexity likewise, n, subtasks} of all parts of a task."""
    if set(parts) == {""}:
        return _one(parts[""])
    each = {name: _one(p) for name, p in parts.items()}
    weights = np.array([p.n if BY_SIZE[task] else 1 for p in parts.values()], float)
    weights /= weights.sum()
    means = np.array([e["acc"] for e in each.values()])
    errors = np.array([e["acc_stderr"] for e in each.values()])
    mean = float(weights @ means)
    if BY_SIZE[task]:
        error = _pooled(errors, np.array([p.n for p in parts.values()]))
    else:
        error = float(np.sqrt(((weights * errors) ** 2).sum()))
    interval = [max(0.0, mean - Z95 * error), min(1.0, mean + Z95 * error)]
    total = sum(p.n for p in parts.values())
    return {"acc": mean, "acc_stderr": error, "acc_ci95": interval, "n": total, "subtasks": each}


def _one(p: Part) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, right in p.right.items():
        out |= {name: float(right.mean()), f"{name}_stderr": stderr(right), f"{name}_ci95": wilson(right)}
    if p.logp is not None:
        # exp of a mean has no simple standard error: resampled, as in lm-eval.
        draws = np.random.default_rng(0).integers(0, p.n, (RESAMPLES, p.n))
        with np.errstate(over="ignore", invalid="ignore"):
            spread = np.exp(-p.logp[draws].mean(axis=1))
            out["perplexity"] = float(np.exp(-p.logp.mean()))
            out["perplexity_stderr"] = float(spread.std(ddof=1)) if p.n > 1 else math.nan
            out["perplexity_ci95"] = [float(v) for v in np.percentile(spread, (2.5, 97.5))]
    return out | {"n": p.n}


def stderr(right: np.ndarray) -> float:
    """Standard error of a mean, from the sample's own spread (n - 1); nan for a single value."""
    return float(right.std(ddof=1) / math.sqrt(len(right))) if len(right) > 1 else math.nan


def wilson(right: np.ndarray) -> list[float]:
    """Wilson's 95 % interval of a share: honest also for few questions and near 0 or 1, where mean ± 2 stderr is not."""
    n, p = len(right), float(right.mean())
    middle = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    return [max(0.0, middle - half), min(1.0, middle + half)]


def _pooled(errors: np.ndarray, sizes: np.ndarray) -> float:
    """Standard error over subtasks weighted by size: lm-eval's `pooled_sample_stderr`."""
    freedom = sizes.sum() - len(sizes)
    if not freedom:
        return math.nan
    known = sizes > 1
    variance = ((sizes - 1) * errors**2 * sizes)[known].sum() / freedom
    return float(math.sqrt(variance / sizes.sum()))
