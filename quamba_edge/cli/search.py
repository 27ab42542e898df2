"""Verbs that look for a recipe: what each layer loses by fewer bits, and which mix of them loses least within a budget."""

from __future__ import annotations

import argparse
from pathlib import Path

from quamba_edge.cli.verb import BACKEND, STATE, THREADS, Outcome, Verb, flag


def sensitivity(args: argparse.Namespace) -> Outcome:
    from quamba_edge.apps import search as app
    from quamba_edge.apps.pack import Progress

    with Progress() as progress:
        found = app.sensitivity({**vars(args), "checkpoint": args.CHECKPOINT}, progress, args.command)
    return Outcome(found.to_json(), app.sensitivity_text(found))


def search(args: argparse.Namespace) -> Outcome:
    from quamba_edge.apps import search as app
    from quamba_edge.apps.pack import Progress

    with Progress() as progress:
        found = app.search({**vars(args), "checkpoint": args.CHECKPOINT}, progress, args.command)
    return Outcome(found.to_json(), app.search_text(found))


# fmt: off
CHECKPOINT = flag("CHECKPOINT", "", "a folder with config.json and weights, or a name on the Hugging Face Hub")
TEXT = (
    flag("--calib", "FILE", "text or JSON lines to calibrate and to measure on; without it, text sampled from the model", type=Path),
    flag("--calib-samples", "N", "windows to calibrate on (128)", type=int, default=128),
    flag("--calib-len", "L", "tokens in each window (512)", type=int, default=512),
    flag("--tokens", "N", "tokens of the end of the text to measure on, which are not calibrated on (8192)", type=int, default=8192),
    flag("--seed", "S", "of everything random (0)", type=int, default=0),
    flag("--tokenizer", "FILE", "tokenizer.json or SentencePiece .model for a checkpoint without one", type=Path),
)
VERBS = (
    Verb(
        "sensitivity",
        "Measure what each layer, the embedding and head, and the states lose by fewer bits, each alone, as KL from the source.",
        sensitivity,
        (
            CHECKPOINT,
            flag("-o --out", "DIR", "folder for the report, its picture, and the model packed in every mode", type=Path, required=True),
            flag("--choices", "C,C", "what a layer may have (w4a8,w4a16,w8a8,w8a16)"),
            *TEXT, BACKEND, STATE, THREADS,
        ),
    ),
    Verb(
        "search",
        "Search the recipe that loses least within a budget; the same command again goes on, and on other machines joins in.",
        search,
        (
            CHECKPOINT,
            flag("-o --out", "DIR", "folder for best.qedge, recipe.json, front.json, front.png, and the model packed in every mode", type=Path, required=True),
            flag("--budget", "KIND=N", "a16=4, bytes=3.1MB, decode=2.5ms, prefill=80ms or energy=40mJ; may be repeated, the first is the front's axis", action="append", default=[], required=True),
            flag("--recipe", "R", "what a layer may have: w4ax (w4a8 or w4a16), wxa8, wxax, or choices such as w4a8,w8a8,w4a8/out_proj=8 (w4ax)", default="w4ax"),
            flag("--ends", "M,M", "modes that embedding and head may have, such as w8a8,w4a8; without it, the shipped recipes'"),
            flag("--trials", "N", "recipes that the study has measured when the search ends (200)", type=int, default=200),
            flag("--study", "S", "where processes share the study: a journal file, or a URL such as postgresql://user@host/db (DIR/study.journal)"),
            flag("--costs", "FILE", "for budgets of time: what `bench --profile --json` printed on the device; may be repeated", type=Path, action="append", default=[]),
            flag("--device", "D", "for budgets of time: predict them for this board"),
            flag("--watts", "W", "for budgets of energy: what the device draws; without it, the limit of the --device's mode", type=float),
            flag("--tasks", "A,B", "minimize 1 - accuracy of these tasks instead of KL"),
            flag("--data", "DIR", "for --tasks: the folder with their files", type=Path),
            flag("--limit", "N", "for --tasks: only the first N questions of each, and of each subtask", type=int),
            *TEXT, BACKEND, STATE, THREADS,
        ),
    ),
)
# fmt: on
