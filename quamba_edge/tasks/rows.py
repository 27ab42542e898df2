"""The documents of a task, as rows of local files; a folder of files is a task with subtasks.

lambada_openai.jsonl {text}                          hellaswag_1k.jsonl {ctx, endings, label}
piqa, arc_easy, arc_challenge .jsonl {query, choices, gold}
winogrande.jsonl {context_options, continuation, gold}
blimp/PHENOMENON.jsonl {sentence_good, sentence_bad}
mmlu/test/SUBJECT_test.csv, mmlu/dev/SUBJECT_dev.csv  question, choice0 .. choice3, answer (index)
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quamba_edge.errors import BadText, BadUsage

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """Where a task's rows are: file names of which the first found is taken, or a folder, and the fields each row must have."""

    files: tuple[str, ...]
    fields: tuple[str, ...]
    parts: str = ""  # of a folder: the pattern of its files; what `*` stands for names the subtask
    examples: str = ""  # of a folder: the file with the worked examples of subtask {}


_CHOICES = ("query", "choices", "gold")
_MMLU = ("question", "choice0", "choice1", "choice2", "choice3", "answer")
SOURCES = {
    "lambada": Source(("lambada_openai.jsonl",), ("text",)),
    "hellaswag": Source(("hellaswag.jsonl", "hellaswag_1k.jsonl"), ("ctx", "endings", "label")),
    "piqa": Source(("piqa.jsonl",), _CHOICES),
    "arc_easy": Source(("arc_easy.jsonl",), _CHOICES),
    "arc_challenge": Source(("arc_challenge.jsonl",), _CHOICES),
    "winogrande": Source(("winogrande.jsonl",), ("context_options", "continuation", "gold")),
    "blimp": Source(("blimp",), ("sentence_good", "sentence_bad"), parts="*.jsonl"),
    "mmlu": Source(("mmlu/test",), _MMLU, parts="*_test.csv", examples="mmlu/dev/{}_dev.csv"),
}


@dataclass(frozen=True)
class Part:
    """A task, or one of its subtasks: its rows, and the worked examples that may be shown before each."""

    name: str  # of the subtask; "" for a task that has none
    rows: tuple[Row, ...]
    examples: tuple[Row, ...] = ()


def known(tasks: str) -> list[str]:
    """Names in "a,b", or all of them for "all"; BadUsage for one that is none."""
    names = [n.strip() for n in tasks.split(",") if n.strip()]
    names = list(SOURCES) if names == ["all"] else list(dict.fromkeys(names))
    wrong = [n for n in names if n not in SOURCES]
    if wrong or not names:
        found = f"{wrong[0]!r} is no task" if wrong else "no task is named"
        raise BadUsage(f"{found}: choose from {', '.join(SOURCES)}, or all")
    return names


def load(task: str, folder: Path, limit: int | None = None, seed: int | None = None) -> list[Part]:
    """The parts of a task; of each the first `limit` rows, or with a seed `limit` random ones in the file's order.

    As in lm-eval, the limit holds for each subtask.  BadText names the file that is missing, or the row that is wrong.
    """
    source = SOURCES[task]
    places = [folder / name for name in source.files]
    found = next((p for p in places if (p.is_dir() if source.parts else p.is_file())), None)
    if found is None:
        raise BadText(
            f"task {task} needs {' or '.join(map(str, places))}, which is not there; expected {_shape(source)}"
        )
    if not source.parts:
        return [Part("", _some(read(found, source.fields), limit, seed, task))]
    ending = source.parts.removeprefix("*")
    paths = sorted(found.glob(source.parts))
    if not paths:
        raise BadText(f"task {task} needs files {found / source.parts}, and there is none; expected {_shape(source)}")
    parts = []
    for path in paths:
        name = path.name.removesuffix(ending)
        shown = read(folder / source.examples.format(name), source.fields) if source.examples else ()
        rows = _some(read(path, source.fields), limit, seed, f"{task}/{name}")
        parts.append(Part(name, rows, tuple(shown)))
    return parts


def read(path: Path, fields: tuple[str, ...]) -> list[Row]:
    """Rows of a .jsonl or .csv file, each with at least these fields."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise BadText(f"{path} is not there; expected rows with {', '.join(fields)}") from None
    except UnicodeDecodeError as e:
        raise BadText(f"{path}: no UTF-8 text at byte {e.start}; convert it first") from None
    # csv needs the line breaks inside quotes; JSON lines end at \n alone, not at the other breaks that splitlines knows.
    rows = (
        list(csv.DictReader(io.StringIO(text, newline=""))) if path.suffix == ".csv" else _json(path, text.split("\n"))
    )
    for i, row in enumerate(rows, 1):
        lacking = [f for f in fields if not isinstance(row, dict) or row.get(f) is None]
        if lacking:
            raise BadText(f"{path}: row {i} has no {lacking[0]!r}; expected {', '.join(fields)} in every row")
    if not rows:
        raise BadText(f"{path} has no rows; expected rows with {', '.join(fields)}")
    return rows


def _json(path: Path, lines: list[str]) -> list[Any]:
    rows = []
    for i, line in enumerate(lines, 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as e:
            raise BadText(f"{path}: line {i} is no JSON ({e}); expected one object a line") from None
    return rows


def _some(rows: list[Row], limit: int | None, seed: int | None, name: str) -> tuple[Row, ...]:
    if limit is not None and limit < 1:
        raise BadUsage(f"--limit is {limit}: expected 1 or more")
    if limit is None or limit >= len(rows):
        return tuple(rows)
    if seed is None:
        return tuple(rows[:limit])
    return tuple(rows[i] for i in sorted(random.Random(f"{seed} {name}").sample(range(len(rows)), limit)))


def _shape(source: Source) -> str:
    kind = "CSV files" if source.parts.endswith(".csv") else "files" if source.parts else "one"
    return f"{kind} whose rows have {', '.join(source.fields)}"
