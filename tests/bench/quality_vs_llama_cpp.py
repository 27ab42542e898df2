r"""What 4, 5 and 8 bits cost a trained model in llama.cpp and here, on the same text; run by hand, needs llama.cpp's programs.

    python tests/bench/quality_vs_llama_cpp.py --llama-cpp SOURCE --llama-bin BUILD/bin --calib chat-train.txt --text chat-valid.txt \
        --folder P [--models DIR...] [--types Q4_0,Q4_K_M] [--recipes w4a16,w4a8,FILE.json] [--json FILE] [--plot FILE.png]

SOURCE is vendor/llama.cpp of the llama-cpp-python sdist; tests/bench/vs_llama_cpp.py says how to fetch and build it, here with the
targets llama-quantize llama-perplexity llama-imatrix.  Files and llama.cpp's scores stay in P, so that a second run measures
only what is not there; our bundles of P are packed again with --repack.

Each program is compared with its own f16 of the same checkpoint, on the tokens that llama-perplexity read: consecutive windows
of 1024 from an empty state, of which it scores the second half (511 tokens).  Its --save-all-logits gives log-probabilities
(16 bits each, half a step is 1.2e-4 nats, none more than 16 under the largest: ours are cut there too, which is why perplexities
are a tenth of a percent lower than it prints), so both sides' losses are paired token by token.  Error bars are standard errors over
windows; a gap between two files is the mean over windows of the difference of their losses, with its own error.

loss  mean of nll - nll of the own f16, which is the logarithm of the ratio of perplexities
w4a16-e6-g32  the shipped recipe with embedding and head at 6 bits, and groups of 32 columns
KL    mean over positions of KL(own f16 || file), in nats: unlike the loss, no luck can lower it
bits  8 times the bytes of all tensors, whatever their type, over the checkpoint's parameters; without the tokenizer on both sides
+     a file made with an importance matrix of the calibration text, of 128 windows of 512 tokens, as many as pack reads
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, from anywhere

from rivals.llama_cpp_files import FIRST, FLOOR, Scores, Tools, divergence, scored, scores  # noqa: E402

from quamba_edge.apps.evaluate import encode, read_text  # noqa: E402
from quamba_edge.apps.inspect import inspect  # noqa: E402
from quamba_edge.bundle.reader import Bundle  # noqa: E402
from quamba_edge.checkpoint import open_checkpoint  # noqa: E402
from quamba_edge.pack import pack  # noqa: E402
from quamba_edge.quant.recipe import FINE, MODES, shipped  # noqa: E402
from quamba_edge.quant.walk import parameter_count  # noqa: E402
from quamba_edge.runtime.session import Engine, Session  # noqa: E402

NEEDS = "needs --llama-cpp, --llama-bin, --calib, --text and --folder; the top of this file says what they are"
TYPES = "Q4_0,Q4_0+,Q4_K_S,Q4_K_S+,Q4_K_M,IQ4_XS+,IQ4_NL,IQ4_NL+,Q5_K_M,Q5_K_M+,Q8_0"
THEIRS, OURS = "llama.cpp ", "ours "


@dataclass(frozen=True)
class Row:
    """One file: what it loses against its own f16 in each window, and how large it is."""

    model: str
    name: str
    bits: float
    file_bytes: int
    perplexity: float
    loss: np.ndarray  # (windows)
    kl: np.ndarray  # (windows)

    def to_json(self) -> dict:
        out: dict = {n: getattr(self, n) for n in ("model", "name", "bits", "file_bytes", "perplexity")}
        for name in ("loss", "kl"):
            out |= {name: float(getattr(self, name).mean()), f"{name}_se": error(getattr(self, name))}
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("llama-cpp", "llama-bin", "calib", "text", "folder", "json", "plot"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--models", type=Path, nargs="+", default=sorted((ROOT / "demos" / "models").glob("*-5m")))
    parser.add_argument("--types", default=TYPES)
    parser.add_argument(
        "--recipes",
        default="w8a8,w4a16,w4a8,w4a16-g32,w4a8-g32",
        help="shipped names, also with -eBITS (edges) and -gGROUP, or files",
    )
    parser.add_argument("--state-dtype", default="f16", help="of our bundles (f16)")
    parser.add_argument("--repack", action="store_true")
    parser.add_argument("--windows", type=int, help="of the text, from its beginning (all)")
    parser.add_argument("--threads", type=int, default=2, help="of llama.cpp's programs (2)")
    args = parser.parse_args()
    if not all((args.llama_cpp, args.llama_bin, args.calib, args.text, args.folder)):
        print(f"quality_vs_llama_cpp.py {NEEDS}")
        print(json.dumps({"skipped": NEEDS}))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    places = (p.resolve() for p in (args.llama_cpp, args.llama_bin, args.calib, args.text, args.folder))
    tools, told = Tools(*places, args.windows, args.threads), []
    for model in args.models:
        rows = fight(model, tools, args)
        gaps = [gap for row in rows if row.name.startswith(OURS) for gap in against(row, rows)]
        print("\n".join([table(rows), *(say(gap) for gap in gaps)]), flush=True)
        told.append({"model": model.name, "rows": [row.to_json() for row in rows], "gaps": gaps})
        if args.json:
            args.json.write_text(json.dumps(told, indent=1))
    if args.plot:
        plot(told, args.plot)
    print(json.dumps(told))


def fight(model: Path, tools: Tools, args: argparse.Namespace) -> list[Row]:
    """Every file of one model, those of fewest bits first."""
    print(f"\n{model.name}", flush=True)
    parameters = parameter_count(open_checkpoint(model))
    tokens, their_f16 = scores(model, "f16", tools)
    recipes = args.recipes.split(",")
    our_f16, *found = ours(model, ["w16a16", *recipes], tokens, tools, args)
    print(f"  {tokens.shape[0]} windows, {their_f16.nll.size} scored tokens; perplexity of llama.cpp's f16 "
          f"{math.exp(their_f16.nll.mean()):.4f}, of our w16a16 {math.exp(our_f16.nll.mean()):.4f}")  # fmt: skip
    files = [(THEIRS + kind, their_f16, scores(model, kind, tools)[1]) for kind in args.types.split(",")]
    files += [(OURS + Path(recipe).stem, our_f16, own) for recipe, own in zip(recipes, found, strict=True)]
    rows = []
    for name, f16, own in files:
        losses = (own.nll - f16.nll).mean(axis=1), own.kl.mean(axis=1)
        bits = 8 * own.bytes / parameters
        rows.append(Row(model.name, name, bits, own.file_bytes, math.exp(own.nll.mean()), *losses))
    return sorted(rows, key=lambda row: row.bits)


def ours(model: Path, recipes: list[str], tokens: np.ndarray, tools: Tools, args: argparse.Namespace) -> list[Scores]:
    """Scores of one bundle for each recipe, on the same tokens; KL is from the first."""
    paths = []
    for recipe in recipes:
        paths.append(tools.folder / f"{model.name}-{Path(recipe).stem}.qedge")
        if args.repack or not paths[-1].exists():
            paths[-1].unlink(missing_ok=True)
            pack(model, paths[-1], spelled(recipe, tools.folder), tools.calib, eval_tokens=0)
    bundles = [Bundle.open(path) for path in paths]
    ids = encode(bundles[0].tokenizer_json(), read_text(tools.text), bundles[0].manifest.vocab_size, model.name)
    if not np.array_equal(ids[: tokens.size].reshape(tokens.shape), tokens):
        raise SystemExit(
            f"llama.cpp made other tokens of {tools.text} than {model.name}'s tokenizer: nothing to compare"
        )
    sessions = [Session(Engine(bundle, "auto", args.state_dtype)) for bundle in bundles]
    nll, kl = np.empty((2, len(sessions), len(tokens), tokens.shape[1] - 1 - FIRST))
    p = np.empty(0)
    for w, window in enumerate(tokens):
        for s, session in enumerate(sessions):
            session.reset()
            q = session.read(window[:-1])[FIRST:].astype(np.float64)
            q -= q.max(axis=1, keepdims=True)
            q = np.maximum(q, -FLOOR) - np.log(np.exp(q).sum(axis=1, keepdims=True))
            p = q if s == 0 else p
            nll[s, w], kl[s, w] = scored(q, window[FIRST + 1 :]), divergence(p, q)
    sizes = [sum(part.bytes for part in inspect(path).parts if part.name != "tokenizer") for path in paths]
    return [Scores(nll[s], kl[s], sizes[s], path.stat().st_size) for s, path in enumerate(paths)]


def spelled(recipe: str, folder: Path) -> str:
    """The recipe's file, where it is a mode with changes such as w4a16-e6-g32; else as it is."""
    mode, *changes = recipe.split("-")
    if recipe in (*MODES, *FINE) or mode not in MODES:
        return recipe
    base = shipped(mode)
    sites = dict(base.sites)
    for change in changes:
        bits = int(change[1:])
        if change[0] == "e":
            sites |= {name: replace(sites[name], bits=bits) for name in ("embedding", "head")}
        else:
            sites["*"] = replace(sites["*"], group=bits)
    path = folder / f"{recipe}.json"
    path.write_text(json.dumps(replace(base, name=recipe, sites=sites).to_json()))
    return str(path)


def against(row: Row, rows: list[Row]) -> list[dict]:
    """Our row against llama.cpp's best by loss and by KL: of those with no more bits, and of those up to half a bit larger."""
    out = []
    for measure in ("loss", "kl"):
        for least, most in ((0.0, row.bits), (row.bits, row.bits + 0.5)):
            rivals = [r for r in rows if r.name.startswith(THEIRS) and least < r.bits <= most]
            if rivals:
                best = min(rivals, key=lambda r: float(getattr(r, measure).mean()))
                gap = getattr(row, measure) - getattr(best, measure)
                out.append({"ours": row.name, "bits": row.bits, "rival": best.name, "rival_bits": best.bits,
                            "measure": measure, "gap": float(gap.mean()), "gap_se": error(gap)})  # fmt: skip
    return out


def error(windows: np.ndarray) -> float:
    """Standard error of the mean of (windows)."""
    return float(np.std(windows, ddof=1) / math.sqrt(len(windows)))


def table(rows: list[Row]) -> str:
    lines = [
        "| file | bits | bytes | perplexity | loss, % | KL, 1e-3 nats |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in (row.to_json() for row in rows):
        loss, kl = (f"{k * r[n]:.2f} ± {k * r[f'{n}_se']:.2f}" for n, k in (("loss", 100), ("kl", 1000)))
        size = f"{r['bits']:.2f} | {r['file_bytes']:,}"
        lines.append(f"| {r['name']} | {size} | {r['perplexity']:.4f} | {loss} | {kl} |")
    return "\n".join(lines)


def say(gap: dict) -> str:
    """A gap in words; below zero is ours the better."""
    scale, unit = (100, "%") if gap["measure"] == "loss" else (1000, "e-3 nats")
    size = f"{scale * gap['gap']:+.2f} ± {scale * gap['gap_se']:.2f} {unit}"
    return (
        f"  {gap['ours']} ({gap['bits']:.2f} bits) - {gap['rival']} ({gap['rival_bits']:.2f}): {gap['measure']} {size}"
    )


def plot(told: list[dict], path: Path) -> None:
    """KL over bits, a row a model: all files, and those of 4 bits on their own scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4 * len(told)), layout="constrained")
    for pair, one in zip(figure.subplots(len(told), 2, squeeze=False), told, strict=True):
        split = min(r["bits"] for r in one["rows"]) + 0.6
        for axes, near in zip(pair, (False, True), strict=True):
            for side, mark, color in ((THEIRS, "o", "tab:gray"), (OURS, "D", "tab:blue")):
                rows = [r for r in one["rows"] if r["name"].startswith(side) and (r["bits"] < split or not near)]
                x, y, e = ([k * r[n] for r in rows] for n, k in (("bits", 1), ("kl", 1000), ("kl_se", 1000)))
                axes.errorbar(x, y, e, fmt=mark, color=color, label=side.strip(), capsize=2, markersize=4)
                for *at, r in zip(x, y, rows, strict=True):
                    if near == (r["bits"] < split) and r["name"] != THEIRS + "Q4_K_M":  # as Q4_K_S
                        name = r["name"].removeprefix(side)
                        axes.annotate(name, at, (6, -2), textcoords="offset points", fontsize=7, color=color)
            axes.set(title=one["model"], xlabel="bits per weight, all tensors", yscale="linear" if near else "log")
            axes.margins(x=0.15)
            axes.grid(alpha=0.3)
        pair[0].set_ylabel("KL from the own f16, 1e-3 nats a token")
        pair[1].legend()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
