"""A task from its files to its numbers, for whatever reads tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quamba_edge.runtime.tokenizer import Tokenizer
from quamba_edge.tasks import prompts, results, rows, scoring
from quamba_edge.tasks.reader import Reader
from quamba_edge.tasks.tokens import request

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Target:
    """A model to ask: its reader, its tokenizer, the token that begins texts (None where it has none), those that end them."""

    reader: Reader
    tokenizer: Tokenizer
    prefix: int | None
    ends: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Asked:
    """A task's questions by subtask ("" where there is none)."""

    task: str
    parts: dict[str, list[prompts.Question]]
    fewshot: int


def ask(
    task: str, folder: Path, *, limit: int | None = None, seed: int | None = None, fewshot: int | None = None
) -> Asked:
    """Read a task's files; nothing is computed yet, so that a missing file is found before the first hour of work.

    `fewshot` is for the tasks that show worked examples; the others show none.
    """
    parts = rows.load(task, folder, limit, seed)
    shown = prompts.FEWSHOT.get(task, 0) if fewshot is None or task not in prompts.FEWSHOT else fewshot
    return Asked(task, {p.name: prompts.questions(task, p, shown) for p in parts}, shown)


def answer(target: Target, asked: Asked, progress: Progress = lambda done, total, text: None) -> dict[str, Any]:
    """{acc, acc_stderr, acc_ci95, ..., n, fewshot, backend} of a task."""
    found = scores(target, asked, progress)
    parts = {name: results.part(asked.task, part, found[name]) for name, part in asked.parts.items()}
    summary = results.summarize(asked.task, parts)
    return {**summary, "fewshot": asked.fewshot, "backend": target.reader.name}


def scores(
    target: Target, asked: Asked, progress: Progress = lambda done, total, text: None
) -> dict[str, list[list[scoring.Score]]]:
    """By subtask, a list for each question: one score for each of its pairs."""
    every = [q for part in asked.parts.values() for q in part]
    requests = [request(target.tokenizer.encode, target.prefix, *pair) for q in every for pair in q.pairs]
    found = iter(scoring.score(target.reader, requests, lambda done: progress(done, len(requests), asked.task)))
    return {name: [[next(found) for _ in q.pairs] for q in part] for name, part in asked.parts.items()}


def table(found: dict[str, dict[str, Any]], metrics: Sequence[str] = ("acc", "acc_norm", "perplexity")) -> str:
    """The results for people: a line a task."""
    width = max(map(len, found))
    lines = []
    for task, numbers in found.items():
        said = [f"{task:<{width}}  n {numbers['n']:>6}"]
        for metric in metrics:
            if metric in numbers:
                low, high = numbers[f"{metric}_ci95"]
                digits = 2 if metric == "perplexity" else 4
                said.append(f"{metric} {numbers[metric]:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
        lines.append("  ".join(said))
    return "\n".join([*lines, "in brackets: the 95 % interval that the number of questions allows"])
