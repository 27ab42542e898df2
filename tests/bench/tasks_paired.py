r"""Zero-shot tables of many files of one model, and what each differs from the first on the same questions; run by hand.

    python tests/bench/tasks_paired.py storyteller-mamba2-5m storyteller-mamba2-5m-w8a8.qedge ... --data DIR --folder P \
        [--tasks blimp,lambada] [--limit 300] [--threads N]

Targets as `quamba-edge eval` takes them; the first is usually the source.  Accuracies and intervals are those that `eval --json`
gives.  Scores stay in P/NAME.json, so that a second run measures only what is not there.

Two files of a model answer the same questions, mostly alike: what chance there is in the questions falls out of their difference.
same     share of the questions whose answer is right in both or wrong in both; of two answers that is the same answer
acc      mean of (right here - right there) over questions, subtasks counting alike, ± its own standard error
margin   of questions with two answers: how far, root mean square in nats, the difference of their log p has moved
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, from anywhere

from quamba_edge.apps.tasks import open_target  # noqa: E402
from quamba_edge.tasks import results, rows, run  # noqa: E402
from quamba_edge.tasks.scoring import Score  # noqa: E402

TASKS = "blimp,lambada,arc_easy,hellaswag,piqa,winogrande"
NEEDS = "needs targets, --data and --folder; the top of this file says what they are"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if not (args.targets and args.data and args.folder):
        print(f"tasks_paired.py {NEEDS}")
        print(json.dumps({"skipped": NEEDS}))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    asked = [run.ask(name, args.data, limit=args.limit) for name in rows.known(args.tasks)]
    base: dict[str, Any] | None = None
    told = []
    for target in args.targets:
        found = scored(target, asked, args)
        one = {"target": Path(target).name, **summaries(asked, found), "paired": against(asked, found, base or found)}
        base = base or found
        told.append(one)
        print(line(one), flush=True)
    print(json.dumps(told))


def scored(target: str, asked: list[run.Asked], args: argparse.Namespace) -> dict[str, Any]:
    """{task: {subtask: [[(log p, greedy) of each answer] of each question]}}, from P where it is there."""
    path = args.folder / f"{Path(target).name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    with ExitStack() as stack:
        model = None
        for one in asked:
            if sizes(found.get(one.task, {})) == sizes(one.parts):
                continue
            threads = args.threads if Path(target).is_file() else None  # the source is torch's
            model = model or open_target(stack, target, threads=threads)
            scores = run.scores(model, one, lambda done, total, text: None)
            found[one.task] = {n: [[(s.logp, s.greedy) for s in q] for q in part] for n, part in scores.items()}
            path.write_text(json.dumps(found))
    return {task: {n: [[Score(*s) for s in q] for q in part] for n, part in f.items()} for task, f in found.items()}


def sizes(parts: dict[str, Any]) -> dict[str, int]:
    return {name: len(part) for name, part in parts.items()}


def parts_of(one: run.Asked, found: dict[str, Any]) -> dict[str, results.Part]:
    return {name: results.part(one.task, part, found[one.task][name]) for name, part in one.parts.items()}


def summaries(asked: list[run.Asked], found: dict[str, Any]) -> dict[str, Any]:
    return {one.task: results.summarize(one.task, parts_of(one, found)) for one in asked}


def against(asked: list[run.Asked], found: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """{task: {same, acc, acc_se, margin}} of `found` beside `base`."""
    out: dict[str, Any] = {}
    for one in asked:
        here, there = parts_of(one, found), parts_of(one, base)
        moved = [here[n].right["acc"] - there[n].right["acc"] for n in one.parts]
        errors = np.array([results.stderr(d) for d in moved])
        out[one.task] = {
            "same": float((np.concatenate(moved) == 0).mean()),
            "acc": float(np.mean([d.mean() for d in moved])),
            "acc_se": float(np.sqrt((errors**2).sum()) / len(moved)),
        }
        if all(len(q.pairs) == 2 for part in one.parts.values() for q in part):
            gone = np.concatenate([margins(found[one.task][n]) - margins(base[one.task][n]) for n in one.parts])
            out[one.task]["margin"] = math.sqrt(float((gone**2).mean()))
    return out


def margins(part: list[list[Score]]) -> np.ndarray:
    return np.array([q[0].logp - q[1].logp for q in part])


def line(one: dict[str, Any]) -> str:
    """A target in words: each task's first metric with its interval, and how it differs from the first target."""
    said = [one["target"]]
    for task, p in one["paired"].items():
        n = one[task]
        metric = "acc_norm" if "acc_norm" in n else "acc"
        low, high = n[f"{metric}_ci95"]
        text = f"  {task:<12} {metric} {n[metric]:.4f} ({low:.3f} to {high:.3f})  same {100 * p['same']:.2f} %"
        text += f"  acc {100 * p['acc']:+.2f} ± {100 * p['acc_se']:.2f} points"
        said.append(text + (f"  margin {p['margin']:.3f} nats" if "margin" in p else ""))
    return "\n".join(said)


if __name__ == "__main__":
    main()
