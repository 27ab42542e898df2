"""Verbs of the workstation: make a bundle, look into it, check it, measure what quantization cost."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from quamba_edge.cli.verb import BACKEND, BUNDLE, THREADS, Outcome, Verb, flag
from quamba_edge.errors import BadUsage, CheckFailed


def pack(args: argparse.Namespace) -> Outcome:
    from quamba_edge.apps import pack as app

    names = "out recipe calib calib_samples calib_len method seed resume tokenizer chat_template eval_tokens".split()
    options = {"checkpoint_path": args.CHECKPOINT, **{n: getattr(args, n) for n in names}}
    with app.Progress() as progress:
        result = app.pack(options, progress, args.command, args.card)
    return Outcome(asdict(result), app.summary(result))


def inspect(args: argparse.Namespace) -> Outcome:
    from quamba_edge.apps import inspect as app

    result = app.inspect(args.BUNDLE)
    return Outcome(result.to_json(), app.text(result))


def verify(args: argparse.Namespace) -> Outcome:
    from quamba_edge.apps import verify as app

    result = app.verify(args.BUNDLE, args.backend, threads=args.threads)
    failure = None if result.ok else CheckFailed(f"{args.BUNDLE}: {'; '.join(result.differences)}")
    return Outcome(asdict(result), app.summary(result) if result.ok else "", failure=failure)


def evaluate(args: argparse.Namespace) -> Outcome:
    from quamba_edge.apps.pack import Progress

    names = ["backend", "state_dtype", "threads", "tokenizer"]
    of_tasks = {n: getattr(args, n) for n in ("data", "limit", "seed", "fewshot")}
    of_text = {n: getattr(args, n) for n in ("window", "limit_tokens")}
    if (args.ppl is None) == (args.tasks is None):
        raise BadUsage("eval measures either --ppl TEXT or --tasks A,B --data DIR: give one of them")
    strange = of_tasks if args.ppl is not None else of_text
    if any(v is not None for v in strange.values()):
        given = "--ppl takes no" if args.ppl is not None else "--tasks takes no"
        raise BadUsage(f"{given} {', '.join('--' + n.replace('_', '-') for n, v in strange.items() if v is not None)}")
    common = {n: getattr(args, n) for n in names}
    with Progress() as progress:
        if args.ppl is not None:
            from quamba_edge.apps import evaluate as text_app

            window = 1024 if args.window is None else args.window
            result = text_app.evaluate(
                args.TARGET, args.ppl, window=window, limit_tokens=args.limit_tokens, **common, progress=progress
            )
            return Outcome(asdict(result), text_app.summary(result))
        from quamba_edge.apps import tasks as app

        if args.data is None:
            raise BadUsage("--tasks needs --data DIR, the folder with the tasks' files; docs/evaluation.md lists them")
        found = app.evaluate(args.TARGET, args.tasks, **of_tasks, **common, progress=progress)
    return Outcome(found, app.table(found))


# fmt: off
VERBS = (
    Verb(
        "pack",
        "Quantize a checkpoint and write it as one file.",
        pack,
        (
            flag("CHECKPOINT", "", "a folder with config.json and weights, or a name on the Hugging Face Hub"),
            flag("-o --out", "OUT.qedge", "the file to write", type=Path, required=True),
            flag("--recipe", "R", "w4a8, w4a16, w8a8, w16a16, w4a8-g32 or w4a16-g32 (groups of 32, 6-bit edges), or a JSON file (w4a8)", default="w4a8"),
            flag("--calib", "FILE", "text or JSON lines to calibrate on; without it, text sampled from the model", type=Path),
            flag("--calib-samples", "N", "windows to calibrate on (128)", type=int),
            flag("--calib-len", "L", "tokens in each window (512)", type=int),
            flag("--method", "M", "gptq or rtn for every site; without it, what the recipe says", choices=("gptq", "rtn")),
            flag("--seed", "S", "of everything random (0)", type=int, default=0),
            flag("--resume", None, "continue an interrupted run of the same command"),
            flag("--tokenizer", "T", "tokenizer.json, SentencePiece .model, or Hub name, for a checkpoint without one", type=Path),
            flag("--chat-template", "FILE", "Jinja template to store instead of the checkpoint's", type=Path),
            flag("--card", "FILE", "write a model card in Markdown: source, licence, recipe, quality, hashes", type=Path),
            flag("--eval-tokens", "N", "held-out tokens to measure perplexity on; without it, as many as are quick", type=int),
        ),
    ),
    Verb("inspect", "Show what is inside a bundle: sizes by part, recipe, provenance.", inspect, (BUNDLE,)),
    Verb(
        "verify",
        "Check hashes, golden prompts and every op against the reference; name what differs.",
        verify,
        (BUNDLE, BACKEND, THREADS),
    ),
    Verb(
        "eval",
        "Measure a bundle or a checkpoint: its perplexity on a text, or its answers to zero-shot tasks.",
        evaluate,
        (
            flag("TARGET", "", "a bundle, a checkpoint folder, or a name on the Hugging Face Hub"),
            flag("--ppl", "TEXT", "text file; cut into windows, the first token of each not scored", type=Path),
            flag("--window", "W", "for --ppl: tokens in a window; each begins with an empty state (1024)", type=int),
            flag("--limit-tokens", "N", "for --ppl: use only the first N tokens of the text", type=int),
            flag("--tasks", "A,B", "lambada, hellaswag, piqa, arc_easy, arc_challenge, winogrande, blimp, mmlu, or all"),
            flag("--data", "DIR", "for --tasks: the folder with their files", type=Path),
            flag("--limit", "N", "for --tasks: only the first N questions of each, and of each subtask", type=int),
            flag("--seed", "S", "for --tasks: with --limit, N random questions instead of the first", type=int),
            flag("--fewshot", "K", "for --tasks: worked examples before each question of mmlu (5)", type=int),
            flag("--tokenizer", "T", "tokenizer.json, SentencePiece .model, or Hub name, for a checkpoint without one", type=Path),
            flag("--backend", "B", "for a bundle: auto, or a name, which never falls back"),
            flag("--state-dtype", "TYPE", "for a bundle: f16, f32, i8 or auto (f16)"),
            flag("--threads", "N", "for a bundle: threads of a backend that lets one choose", type=int),
        ),
    ),
)
# fmt: on
