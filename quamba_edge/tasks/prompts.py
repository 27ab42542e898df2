"""Rows to questions: which text is scored after which, in the words of lm-eval's task files (docs/evaluation.md has the sources).

A question has one (context, continuation) for each answer; the answer whose continuation is likeliest is the model's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quamba_edge.errors import BadText, BadUsage
from quamba_edge.tasks.rows import Part, Row

LETTERS = ("A", "B", "C", "D")
FEWSHOT = {"mmlu": 5}  # worked examples shown where nothing else is asked; the other tasks show none


@dataclass(frozen=True)
class Question:
    """pairs[i] is (context, continuation) of answer i; `answers[i]` its own text, by whose length acc_norm divides.

    A single pair is no choice: right is the model that would write the continuation greedily.
    """

    pairs: tuple[tuple[str, str], ...]
    gold: int
    answers: tuple[str, ...]


def questions(task: str, part: Part, fewshot: int | None = None) -> list[Question]:
    """The questions of a part; `fewshot` examples before each where the task has any (BadUsage where it has none)."""
    shown = FEWSHOT.get(task, 0) if fewshot is None else fewshot
    if shown and task not in FEWSHOT:
        raise BadUsage(f"task {task} has no worked examples to show; only {', '.join(FEWSHOT)} has some")
    if not 0 <= shown <= len(part.examples) and task in FEWSHOT:
        raise BadUsage(f"task {task} has {len(part.examples)} examples for {part.name}: {shown} cannot be shown")
    made = []
    for i, row in enumerate(part.rows, 1):
        try:
            question = _mmlu(part, row, shown) if task == "mmlu" else MAKERS[task](row)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as e:
            raise BadText(
                f"task {task}{' ' + part.name if part.name else ''}: row {i} cannot be used ({e!r})"
            ) from None
        if not 0 <= question.gold < len(question.answers):
            raise BadText(f"task {task}: row {i} says answer {question.gold} of {len(question.answers)} is right")
        made.append(question)
    return made


def _after(context: str, answers: Sequence[str], gold: int) -> Question:
    """All answers after the same context, each with a space before it."""
    return Question(tuple((context, " " + a) for a in answers), gold, tuple(answers))


def _lambada(row: Row) -> Question:
    *before, last = row["text"].split(" ")
    return Question(((" ".join(before), " " + last),), 0, (last,))


def _hellaswag(row: Row) -> Question:
    # The original rows say what the text is about, and hold the begun sentence apart; extracts may have kept only `ctx`.
    text = row["ctx"]
    if "activity_label" in row:
        text = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return _after(_without_brackets(text), [_without_brackets(e) for e in row["endings"]], int(row["label"]))


def _without_brackets(text: str) -> str:
    """HellaSwag's WikiHow part has marks such as [title] in its text."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _piqa(row: Row) -> Question:
    return _after(row["query"] + "Answer:", row["choices"], int(row["gold"]))  # the query ends with a line break


def _arc(row: Row) -> Question:
    return _after(row["query"] + "\nAnswer:", row["choices"], int(row["gold"]))


def _winogrande(row: Row) -> Question:
    # Partial scoring: the sentence up to and with each name is the context, its end the same continuation for both.
    options = row["context_options"]
    return Question(tuple((o, " " + row["continuation"]) for o in options), int(row["gold"]), tuple(options))


def _blimp(row: Row) -> Question:
    return _after("", (row["sentence_good"], row["sentence_bad"]), 0)


def _mmlu(part: Part, row: Row, shown: int) -> Question:
    about = f"The following are multiple choice questions (with answers) about {part.name.replace('_', ' ')}.\n\n"
    worked = "".join(f"{_asked(e)} {LETTERS[int(e['answer'])]}\n\n" for e in part.examples[:shown])
    return _after(about + worked + _asked(row), LETTERS, int(row["answer"]))


def _asked(row: Row) -> str:
    lines = [f"{letter}. {row[f'choice{i}']}" for i, letter in enumerate(LETTERS)]
    return "\n".join([row["question"].strip(), *lines, "Answer:"])


MAKERS: dict[str, Callable[[Row], Question]] = {
    "lambada": _lambada,
    "hellaswag": _hellaswag,
    "piqa": _piqa,
    "arc_easy": _arc,
    "arc_challenge": _arc,
    "winogrande": _winogrande,
    "blimp": _blimp,
}
