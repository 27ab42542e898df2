"""Pack published models: `python -m export mamba2-2.7b w4a8 w8a8`.  What it runs are plain quamba-edge commands, printed first.

For each recipe: pack with a model card beside the bundle, compare its size with what was predicted, verify.  `--dry-run` only
prints, and needs neither a network nor the weights.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from export.models import MODELS, ROOT, Model
from quamba_edge import cli
from quamba_edge.bundle.outline import file_bytes, outline, parameters
from quamba_edge.errors import QuambaError
from quamba_edge.quant import recipe as recipes

RECIPES = ("w4a8", "w4a16", "w8a8", "w16a16")
SMALL = 1_000_000_000  # parameters, as pack: below, embedding and head keep 8 bits
CALIBRATION = "128 windows of 512 tokens"
NEAR = 0.01  # a bundle's size may differ so much from the predicted one


def predicted(model: Model, recipe: str) -> int:
    """Bytes of the bundle, from dimensions alone."""
    family, config = model.dimensions()
    small = parameters(family, config) < SMALL
    return file_bytes(outline(family, config, recipes.load(recipe, small=small, n_layer=config.n_layer)))


def commands(model: Model, recipe: str, args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """(pack, verify) as arguments of quamba-edge."""
    source = args.source or (str(ROOT / model.source) if model.here else model.source)
    out = bundle_of(model, recipe, args.out)
    pack = ["pack", source, "-o", str(out), "--recipe", recipe, "--card", str(out.with_suffix(".md"))]
    tokenizer = args.tokenizer or (None if args.source else model.tokenizer)
    for flag, value in (("--tokenizer", tokenizer), ("--calib", args.calib), ("--method", args.method)):
        pack += [flag, str(value)] if value else []
    return pack + (["--resume"] if args.resume else []) + args.more, ["verify", str(out)]


def bundle_of(model: Model, recipe: str, folder: Path) -> Path:
    """Where the bundle goes.  Its name is for people: nothing reads a recipe from it."""
    return folder / f"{model.name}-{Path(recipe).stem}.qedge"


def described(model: Model, recipe: str, args: argparse.Namespace) -> str:
    """What will be done, before it is done."""
    pack, verify = commands(model, recipe, args)
    text = args.calib or "text that the model itself writes (--calib FILE for a text of yours)"
    facts = {
        "source": f"{model.source}: {model.layout}",
        "licence": model.licence,
        "tokenizer": args.tokenizer or (f"{model.tokenizer}'s" if model.tokenizer else "the source's own"),
        "calibrates on": f"{CALIBRATION} of {text}",
        "expected size": f"{predicted(model, recipe):,} bytes",
        "runs": f"quamba-edge {shlex.join(pack)}",
        "checks by": f"quamba-edge {shlex.join(verify)}",
    }
    return "\n".join([f"{model.name}, {recipe}", *(f"  {key:<14} {value}" for key, value in facts.items())])


def export(model: Model, recipe: str, args: argparse.Namespace) -> int:
    """Pack, look at the size, verify; the exit code of the first that fails."""
    args.out.mkdir(parents=True, exist_ok=True)
    pack, verify = commands(model, recipe, args)
    if code := cli.main(pack):
        return code
    made, expected = bundle_of(model, recipe, args.out).stat().st_size, predicted(model, recipe)
    if abs(made / expected - 1) > NEAR:
        print(f"{bundle_of(model, recipe, args.out)} has {made:,} bytes, {expected:,} were expected", file=sys.stderr)
        return 1
    return cli.main(verify)


def readme() -> str:
    """export/README.md: every model, its licence and sizes."""
    lines = ["# Bundles of published models", "", *INTRODUCTION.strip().splitlines(), ""]
    lines += ["| model | source | licence | tokenizer |", "| --- | --- | --- | --- |"]
    for m in MODELS.values():
        source = f"[{m.source}](../{m.source}/README.md)" if m.here else f"{m.source} ({m.layout})"
        lines.append(f"| {m.name} | {source} | {m.licence} | {m.tokenizer or 'its own'} |")
    lines += ["", "## Sizes", "", *SIZES.strip().splitlines(), ""]
    lines += [f"| model | {' | '.join(RECIPES)} |", f"| --- | {' | '.join(['---:'] * len(RECIPES))} |"]
    for m in MODELS.values():
        lines.append(f"| {m.name} | {' | '.join(f'{predicted(m, r) / 1e6:,.1f}' for r in RECIPES)} |")
    rows = ((r, predicted(MODELS["mamba2-8b"], r), theirs) for r, theirs in PUBLISHED_8B.items())
    ratios = ", ".join(
        f"{r} {ours / 1e6:,.1f} to {theirs / 1e6:,.1f} MB ({ours / theirs - 1:+.1%})" for r, ours, theirs in rows
    )
    lines += [
        "",
        f"Beside the files of Mamba2-8B that the authors of Quamba2 publish: {ratios}.",
        *BESIDE.strip().splitlines(),
    ]
    return "\n".join(lines) + "\n"


INTRODUCTION = """
Written by `python -m export --readme` from [models.py](models.py).

    python -m export mamba2-2.7b w4a8                         # download, pack, compare the size, write a card, verify
    python -m export mamba2-2.7b w4a8 --source FOLDER         # from a folder of yours, without a network
    python -m export mamba2-8b w4a8 w4a16 --dry-run           # only say what would be done, and how large it gets
    python -m export storyteller-mamba2-5m w4a8               # an embedded model: nothing to download
    python -m export mamba-130m w8a8 -- --seed 3              # what follows -- goes to pack

Bundles go to `bundles/` (`-o DIR`), each with a model card beside it: source, licence, recipe, calibration, perplexity of source
and bundle as measured on held-out text, sha256. A recipe may be a JSON file, such as a per-layer mix. Every step is a `quamba-edge`
command that is printed before; `--resume` goes on where a run was stopped. Licences are those that the sources state; a bundle is a
copy of the weights.
"""

# Of their files on the Hugging Face Hub; W4AX, their mix of the two, has 4,247,971,564.
PUBLISHED_8B = {"w4a8": 4_245_725_690, "w4a16": 4_253_601_410}
BESIDE = """
Ours are larger by the embedding's scales, one for 128 columns where theirs has one for a row (16.4 MB against 0.5), and by the
tokenizer, which theirs leaves out; a mix of both recipes lies between them, since both share one set of codes.
"""

SIZES = """
Bytes of the bundle in MB (10^6), tokenizer included, as `quamba-edge plan` says them from dimensions and recipe; an export whose
file differs by more than 1 % fails. Embedding and head have 8 bits below 1B parameters, in every mode but w16a16; tied ones are one
matrix.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    about, rest = "Pack published models.", "What follows -- goes to quamba-edge pack as it is."
    parser = argparse.ArgumentParser(prog="python -m export", description=about, epilog=rest, allow_abbrev=False)
    parser.add_argument("model", nargs="?", choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("recipe", nargs="*", help=f"{', '.join(RECIPES)}, or a JSON file (w4a8)")
    parser.add_argument("-o", "--out", type=Path, default=Path("bundles"), metavar="DIR", help="where to (bundles)")
    parser.add_argument("--source", metavar="FOLDER", help="the checkpoint, where it is here already")
    parser.add_argument("--tokenizer", metavar="T", help="tokenizer.json, SentencePiece .model, or Hub name")
    parser.add_argument("--calib", metavar="FILE", help="text or JSON lines to calibrate on")
    parser.add_argument("--method", choices=("gptq", "rtn"), help="for every site; without it, what the recipe says")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--readme", action="store_true", help="write export/README.md")
    args = parser.parse_args(words[:cut])
    args.more = words[cut + 1 :]
    if args.readme:
        (ROOT / "export" / "README.md").write_text(readme(), encoding="utf-8")
        return 0
    if args.model is None:
        parser.error(f"which model?  One of {', '.join(MODELS)}")
    try:
        for recipe in args.recipe or ["w4a8"]:
            print(described(MODELS[args.model], recipe, args), flush=True)
            if not args.dry_run and (code := export(MODELS[args.model], recipe, args)):
                return code
    except QuambaError as e:
        print(f"export: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
