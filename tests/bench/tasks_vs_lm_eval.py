"""Our zero-shot tasks against lm-eval's own code: prompts, scores, accuracies; run by hand, needs lm-eval and the task files.

    pip install lm-eval
    python tests/bench/tasks_vs_lm_eval.py --data DIR [--model DIR] [--tasks a,b] [--limit 200] [--parts 2] [--harness]

lm-eval's task files are asked for their requests on the rows of DIR, put back into the fields of the original data sets; they must
equal ours to the letter.  Then lm-eval's HFLM scores them with transformers' model of the checkpoint, ours with the torch reference
(--harness: our model class inside lm-eval instead of HFLM).  --parts is how many subtasks of blimp and mmlu.  The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, from anywhere

from quamba_edge.apps.tasks import open_target  # noqa: E402
from quamba_edge.tasks import prompts, results, rows, scoring  # noqa: E402
from quamba_edge.tasks.tokens import request  # noqa: E402

os.environ.setdefault("HF_HUB_OFFLINE", "1")
FILES = {
    "lambada": "lambada/lambada_openai",
    "hellaswag": "hellaswag/hellaswag",
    "piqa": "piqa/piqa",
    "arc_easy": "arc/arc_easy",
    "arc_challenge": "arc/arc_challenge",
    "winogrande": "winogrande/default",
    "blimp": "blimp/{}",
    "mmlu": "mmlu/default/mmlu_{}",
}


def original(task: str, row: Any) -> dict[str, Any]:
    """A row in the fields of the data set on the Hub."""
    if task == "piqa":
        goal = row["query"].removeprefix("Question: ").removesuffix("\n")
        return {"goal": goal, "sol1": row["choices"][0], "sol2": row["choices"][1], "label": row["gold"]}
    if task.startswith("arc"):
        labels = [chr(65 + i) for i in range(len(row["choices"]))]
        choices = {"text": row["choices"], "label": labels}
        return {
            "question": row["query"].removeprefix("Question: "),
            "choices": choices,
            "answerKey": labels[row["gold"]],
        }
    if task == "winogrande":
        shared = os.path.commonprefix(row["context_options"])
        one, two = (o.removeprefix(shared) for o in row["context_options"])
        sentence = f"{shared}_ {row['continuation']}"
        return {"sentence": sentence, "option1": one, "option2": two, "answer": str(row["gold"] + 1)}
    if task == "mmlu":
        return {
            "question": row["question"],
            "choices": [row[f"choice{i}"] for i in range(4)],
            "answer": int(row["answer"]),
        }
    return dict(row)


def whole(row: Any) -> dict[str, Any]:
    """HellaSwag's extract lacks what the prompt begins with: invented here, for both sides alike."""
    before, _, begun = row["ctx"].rpartition(". ")
    return {**row, "activity_label": "Some title", "ctx_a": f"{before}.", "ctx_b": begun}


def theirs(task: str, part: rows.Part) -> Any:
    """lm-eval's task object over our rows."""
    import datasets
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    path = Path(lm_eval.__file__).parent / "tasks" / (FILES[task].format(part.name) + ".yaml")
    config = load_yaml(path, resolve_func=True)
    asked = datasets.Dataset.from_list([original(task, r) for r in part.rows])
    shown = datasets.Dataset.from_list([original(task, r) for r in part.examples]) if part.examples else asked
    splits = {"train": shown if task != "blimp" else asked, "validation": asked, "test": asked, "dev": shown}
    config.pop("metadata", None)
    config |= {"custom_dataset": lambda **kw: splits, "num_fewshot": prompts.FEWSHOT.get(task, 0)}
    made = ConfigurableTask(config=config)
    made.build_all_requests()
    return made


def transformers_lm(folder: Path) -> Any:
    """lm-eval's own wrapper around transformers' model of the checkpoint."""
    import torch
    import transformers
    from lm_eval.models.huggingface import HFLM

    from quamba_edge.checkpoint import open_checkpoint
    from tests.models.oracle import transformers_model

    checkpoint = open_checkpoint(str(folder))
    model = transformers_model(checkpoint.config, {n: checkpoint.tensor(n) for n in checkpoint.names()}, torch.float32)
    end = "<|endoftext|>"
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token=end, bos_token=end
    )
    return HFLM(pretrained=model, tokenizer=words, batch_size=8, max_length=8192, device="cpu")


def compare(task: str, parts: list[rows.Part], target: Any, lm: Any) -> dict[str, Any]:
    """Requests to the letter, log p to float noise, accuracies to the last question."""
    ours, their_metrics, worst, flips, count, prompts_equal = {}, {}, 0.0, 0, 0, True
    seconds = [0.0, 0.0]
    for part in parts:
        made = theirs(task, part)
        asked = prompts.questions(task, part)
        pairs = [p for q in asked for p in q.pairs]
        prompts_equal &= pairs == [i.args for i in made.instances]
        began = time.monotonic()
        found = scoring.score(target.reader, [request(target.tokenizer.encode, target.prefix, *p) for p in pairs])
        seconds[0] += time.monotonic() - began
        began = time.monotonic()
        answers = lm.loglikelihood(made.instances, disable_tqdm=True)
        seconds[1] += time.monotonic() - began
        worst = max([worst, *(abs(s.logp - a[0]) for s, a in zip(found, answers, strict=True))])
        flips += sum(s.greedy != a[1] for s, a in zip(found, answers, strict=True))
        count += len(asked)
        each, at, left = [], iter(found), iter(answers)
        for q in asked:
            each.append([next(at) for _ in q.pairs])
        docs: dict[str, list[float]] = {}
        for doc, q in zip(made.eval_docs, asked, strict=True):
            for metric, value in made.process_results(doc, [next(left) for _ in q.pairs]).items():
                docs.setdefault(metric, []).append(value)
        ours[part.name], their_metrics[part.name] = results.part(task, asked, each), docs
    summary = results.summarize(task, ours)
    out = {
        "n": count,
        "same_prompts": bool(prompts_equal),
        "largest_logp_difference": float(worst),
        "greedy_flips": flips,
    }
    out |= {"seconds_ours": round(seconds[0], 1), "seconds_theirs": round(seconds[1], 1)}
    return out | {"ours": {k: summary[k] for k in summary if k.startswith(("acc", "perpl")) and "ci95" not in k},
                  "theirs": aggregated(task, their_metrics)}  # fmt: skip


def aggregated(task: str, parts: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """lm-eval's aggregation of what its tasks said of each document."""
    from lm_eval.api import metrics

    means = {n: {m: metrics.mean(v) for m, v in p.items()} for n, p in parts.items()}
    errors = {n: {m: metrics.mean_stderr(v) for m, v in p.items() if len(v) > 1} for n, p in parts.items()}
    sizes = [len(p["acc"]) for p in parts.values()]
    if list(parts) == [""]:
        out = dict(means[""]) | {f"{m}_stderr": e for m, e in errors[""].items()}
        if "perplexity" in out:
            out |= {"perplexity": metrics.perplexity(parts[""]["perplexity"])}
            del out["perplexity_stderr"]  # theirs is resampled a hundred thousand times
        return out
    by_size = results.BY_SIZE[task]
    mean = metrics.aggregate_subtask_metrics([m["acc"] for m in means.values()], sizes, by_size)
    each = [e["acc"] for e in errors.values()]
    error = metrics.pooled_sample_stderr(each, sizes) if by_size else metrics.unweighted_mean_stderr(each)
    return {"acc": float(mean), "acc_stderr": float(error)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", type=Path, default=ROOT / "demos" / "models" / "storyteller-mamba2-5m")
    parser.add_argument("--tasks", default="all")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--parts", type=int, default=2)
    parser.add_argument("--harness", action="store_true")
    args = parser.parse_args()
    if args.data is None or not find_spec("lm_eval"):
        print(json.dumps({"skipped": "needs lm-eval (pip install lm-eval) and --data DIR with the task files"}))
        return
    found = {}
    with ExitStack() as stack:
        target = open_target(stack, str(args.model))
        if args.harness:
            from quamba_edge.harness import register

            lm = register()(checkpoint=str(args.model))
        else:
            lm = transformers_lm(args.model)
        for task in rows.known(args.tasks):
            parts = rows.load(task, args.data, args.limit)[: args.parts]
            if task == "hellaswag":
                parts = [rows.Part("", tuple(whole(r) for r in parts[0].rows))]
            found[task] = compare(task, parts, target, lm)
            print(task, json.dumps(found[task]), flush=True)
    agree = [
        abs(f["ours"][m] - v) <= 1e-9 for f in found.values() for m, v in f["theirs"].items() if m.startswith("acc")
    ]
    same = bool(np.all(agree)) and all(f["same_prompts"] for f in found.values())
    print(json.dumps({"agree": same, "tasks": found}))


if __name__ == "__main__":
    main()
