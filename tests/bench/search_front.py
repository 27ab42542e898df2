"""Searched recipes against the first, the last and random layers, and against greedy, on text that no search saw; run by hand.

    python tests/bench/search_front.py --models DIR... --calib TEXT --text TEXT [--recipe w4ax] [--budget a16] [--seeds 3]
        [--levels 0.25,0.5,0.75] [--trials 100] [--pack] [--work DIR] [--json FILE]

Of each model and seed: calibration windows, search windows and every draw differ.  A level is a share of the way from the least to the
most that a recipe can cost.  --pack also packs every searched recipe as a user would, behind its own layers.  What is in --work is not
computed again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, from anywhere

from quamba_edge.bundle.reader import Bundle  # noqa: E402
from quamba_edge.calibrate.text import Draw  # noqa: E402
from quamba_edge.checkpoint import open_checkpoint  # noqa: E402
from quamba_edge.pack import pack  # noqa: E402
from quamba_edge.runtime.tokenizer import Tokenizer  # noqa: E402
from quamba_edge.search import study, walks  # noqa: E402
from quamba_edge.search.budget import WORDS, Budget, costs  # noqa: E402
from quamba_edge.search.objective import Objective, divergences, mean  # noqa: E402
from quamba_edge.search.run import seeds, sensitivities  # noqa: E402
from quamba_edge.search.source import Source, predictions  # noqa: E402
from quamba_edge.search.space import Space, written  # noqa: E402
from quamba_edge.search.store import is_small, open_store  # noqa: E402

MODELS = ROOT / "demos" / "models"
RANDOM = 3  # random recipes of each level
OTHERS = ("first", "last", "random", "greedy")


def unseen(checkpoint, text: Path, tokens: int, length: int) -> Source:
    """The source's predictions on evenly spaced windows of another text."""
    ids = np.asarray(Tokenizer(checkpoint.tokenizer_json).encode(text.read_text()), np.int64)
    spots = np.linspace(0, len(ids) - length, max(1, tokens // length)).astype(int)
    windows = np.stack([ids[s : s + length] for s in spots])
    return Source.of(windows, *predictions(checkpoint, windows))


def one(model: Path, seed: int, args: argparse.Namespace) -> list[dict]:
    """The rows of a model and seed: one for each level and method."""
    checkpoint = open_checkpoint(model)
    space = Space.of(checkpoint.family, checkpoint.config, is_small(checkpoint), args.recipe, args.ends)
    of = costs(args.budget, space, checkpoint.config)
    least, most = of.least(space.n_layer), of.base + space.n_layer * max(of.layer.values()) + max(of.ends.values())
    levels = [least + share * (most - least) for share in map(float, args.levels.split(","))]
    folder = args.work / f"{model.name}-{seed}"
    draw = Draw(args.calib_samples, 512, args.tokens // 512, seed)
    told = lambda done, total, text: print(f"    {model.name} {seed}: {text}", file=sys.stderr, flush=True)
    with open_store(folder, checkpoint, space.modes(), space.ends, calib=args.calib, draw=draw, progress=told) as store:
        objective = Objective(store, threads=args.threads)
        top = Budget(args.budget, max(levels))
        limits = [(of, top)]
        base_kl, single = sensitivities(folder, objective, space, told)
        within = walks.fits(limits)
        path = walks.greedy(space, of, base_kl, single, within)
        generator = np.random.default_rng(seed)
        population = min(study.POPULATION, args.trials // 4)
        start = seeds(space, path, within, population, generator)
        name = f"{args.recipe}-{args.budget}-{args.levels}-{args.trials}"
        plan = study.Plan(space, limits, within, start, args.trials, seed, name, population)
        kl = lambda given: 2 * (objective.kl(given),)
        points = study.run(study.opened(folder / "study.journal", plan), plan, kl)
        other = unseen(checkpoint, args.text, args.text_tokens, 512)
        known: dict[str, np.ndarray] = {}

        def seen(given) -> np.ndarray:
            """KL of every window of the unseen text."""
            key = json.dumps(given, sort_keys=True)
            if key not in known:
                known[key] = divergences(objective.engine(store.mix(given)), other)
            return known[key]

        rows = []

        def add(level: float | None, method: str, given, **more) -> None:
            windows = seen(given)
            here = next((p.kl for p in points if p.given == given), None)
            row = {"model": model.name, "seed": seed, "level": level, "method": method, "cost": of.of(given)}
            row |= {"kl": mean(windows).kl, "stderr": mean(windows).stderr, "windows": windows.tolist()}
            rows.append({**row, "search_kl": here, "recipe": written(given), **more})

        for choice in space.choices:
            add(None, f"uniform {choice}", space.uniform(choice))
        for level in levels:
            inside = walks.fits([(of, Budget(args.budget, level))])
            best = min((p for p in points if inside(p.given)), key=lambda p: (p.score, p.cost))
            given = {place: best.given[place] for place in space.places}
            more = {"packed_kl": packed(model, checkpoint, space, given, args, seed, other)} if args.pack else {}
            add(level, "search", given, **more)
            add(level, "first", walks.first(space, inside))
            add(level, "last", walks.last(space, inside))
            add(level, "greedy", walks.greedy(space, of, base_kl, single, inside)[-1])
            for _ in range(RANDOM):
                add(level, "random", walks.drawn(space, inside, generator))
    return rows


def packed(model: Path, checkpoint, space: Space, given, args: argparse.Namespace, seed: int, other: Source) -> float:
    """KL on the unseen text of the recipe packed by `pack`, each layer quantized behind those it will run behind."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "recipe.json", Path(folder) / "m.qedge"
        file.write_text(json.dumps(space.recipe(given).to_json()))
        pack(model, out, str(file), args.calib, args.calib_samples, 512, seed=seed, eval_tokens=0)
        with Bundle.open(out) as bundle:
            from quamba_edge.runtime.engine import Engine

            return mean(divergences(Engine(bundle, threads=args.threads), other)).kl


def table(rows: list[dict], args: argparse.Namespace) -> str:
    """For each model and level the searched recipe's KL, and by how much the others' is above it, on the same windows."""
    lines = [f"KL from the source on unseen text, 1/1000 nat a token; budget: {WORDS[args.budget]}", ""]
    lines += [
        "| model | budget | search | " + " | ".join(OTHERS) + " |",
        "| --- | --- | --- |" + " --- |" * len(OTHERS),
    ]
    for model in dict.fromkeys(r["model"] for r in rows):
        mine = [r for r in rows if r["model"] == model]
        uniform = {
            m: [r for r in mine if r["method"] == m] for m in dict.fromkeys(r["method"] for r in mine if not r["level"])
        }
        said = ", ".join(f"{m[8:]} {1e3 * np.mean([r['kl'] for r in of]):.3f}" for m, of in uniform.items())
        for level in sorted({r["level"] for r in mine if r["level"] is not None}):
            at = [r for r in mine if r["level"] == level]
            best = {r["seed"]: r for r in at if r["method"] == "search"}
            spread = [1e3 * r["kl"] for r in best.values()]
            cells = [f"{np.mean(spread):.3f} ({min(spread):.3f} to {max(spread):.3f})"]
            cells += [beside([r for r in at if r["method"] == method], best) for method in OTHERS]
            lines.append(f"| {model} | {level:.7g} | " + " | ".join(cells) + " |")
        lines.append(f"| {model} | uniform | {said} |" + " |" * len(OTHERS))
    return "\n".join(
        [
            *lines,
            "",
            "+a ±b n/m: above the search by a, standard error b over windows, above in n of m recipes; = where the same",
        ]
    )


def beside(others: list[dict], best: dict[int, dict]) -> str:
    """How much more than the search's of the same seed these recipes lose."""
    pairs = [(r, best[r["seed"]]) for r in others]
    apart = [(r, b) for r, b in pairs if r["recipe"] != b["recipe"]]
    same = f" ={len(pairs) - len(apart)}" if len(apart) < len(pairs) else ""
    if not apart:
        return same.strip()
    above = 1e3 * np.concatenate([np.subtract(r["windows"], b["windows"]) for r, b in apart])
    count = sum(r["kl"] > b["kl"] for r, b in apart)
    return f"{above.mean():+.3f} ±{above.std(ddof=1) / len(above) ** 0.5:.3f} {count}/{len(apart)}{same}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", default=sorted(MODELS.glob("*-5m")))
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--recipe", default="w4ax")
    parser.add_argument("--ends")
    parser.add_argument("--budget", default="a16")
    parser.add_argument("--levels", default="0.25,0.5,0.75")
    parser.add_argument("--seeds", type=lambda text: [int(n) for n in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--calib-samples", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--text-tokens", type=int, default=8192)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--pack", action="store_true")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "search_front")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.calib is None or args.text is None:
        print(json.dumps({"skipped": "needs --calib TEXT and --text TEXT"}))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    for seed in args.seeds:
        for model in args.models:
            rows += one(model, seed, args)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1))
            print(table(rows, args), flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
