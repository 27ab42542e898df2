"""Perplexity and size of packed models against their checkpoints, on a whole text; run by hand.

    python tests/bench/quality.py [--models DIR...] [--calib TEXT] [--text TEXT] [--modes w8a8,w4a8] [--ablation] [--limit-tokens N] [--calib-samples N] [--json FILE]

--ablation packs each model in W8A8 and W4A8 with one choice taken back at a time, to show what the choice buys.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, from anywhere

from quamba_edge.apps.evaluate import evaluate  # noqa: E402
from quamba_edge.checkpoint import open_checkpoint  # noqa: E402
from quamba_edge.pack import pack  # noqa: E402
from quamba_edge.quant.recipe import Recipe, Scheme, shipped  # noqa: E402

MODES = ("w16a16", "w8a8", "w4a16", "w4a8")


def edges(recipe: Recipe, bits: int) -> Recipe:
    """The recipe with embedding and head at `bits`."""
    act = recipe.scheme("head").act
    return replace(
        recipe, sites={**recipe.sites, "embedding": Scheme(bits, act, method="rtn"), "head": Scheme(bits, act)}
    )


ABLATIONS = {
    "all": lambda r: r,
    "no rotation": lambda r: replace(r, rotate=False),
    "no GPTQ": lambda r: r.with_method("rtn"),
    "no clip search": lambda r: replace(r, clip_search=False),
    "x per sort-and-cluster group": lambda r: replace(r, x_grain="group"),
    "x, B, C per tensor": lambda r: replace(r, x_grain="tensor", bc_grain="tensor"),
    "x per tensor, 99.9 percentile": lambda r: replace(r, x_grain="tensor", bc_grain="tensor", percentile=99.9),
    "x per channel, 99.99 percentile": lambda r: replace(r, percentile=99.99),
    "8-bit weights per tensor": lambda r: replace(r, weight_grain="tensor"),
    "signed embedding scale": lambda r: replace(r, signed_embedding=True),
    "4-bit embedding and head": lambda r: edges(r, 4),
}


def measure(model: Path, recipe: Recipe, args: argparse.Namespace, source: float | None) -> dict:
    """Pack, evaluate, throw away; one row.  Without a text, on what the packer itself held back."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.json"
        file.write_text(json.dumps(recipe.to_json()))
        held = 0 if args.text else 4096
        made = pack(model, Path(folder) / "m.qedge", str(file), args.calib, args.calib_samples, eval_tokens=held)
        perplexity, source = made.perplexity_bundle, source or made.perplexity_source
        if args.text:
            perplexity = evaluate(made.bundle, args.text, limit_tokens=args.limit_tokens).perplexity
    return {
        "perplexity": perplexity,
        "ratio": perplexity / source,
        "bytes": made.bytes,
        "bits_per_weight": made.bits_per_weight,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", default=sorted((ROOT / "demos" / "models").glob("*-5m")))
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--limit-tokens", type=int)
    parser.add_argument("--calib-samples", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for model in args.models:
        source = None
        if args.text:
            found = evaluate(str(model), args.text, limit_tokens=args.limit_tokens)
            source = found.perplexity
            print(f"\n{model.name}: checkpoint perplexity {source:.4f} on {found.tokens} tokens", flush=True)
        for mode in args.modes.split(","):
            for name, change in ABLATIONS.items() if args.ablation else [("all", ABLATIONS["all"])]:
                recipe = change(shipped(mode))
                if recipe == shipped(mode) and name != "all":
                    continue  # takes nothing back in this mode
                if recipe.x_grain == "group" and open_checkpoint(model).family != "mamba2":
                    continue
                row = {"model": model.name, "mode": mode, "variant": name, **measure(model, recipe, args, source)}
                rows.append(row)
                size = f"{row['bytes']:9d} B  {row['bits_per_weight']:.3f} bits"
                print(f"  {mode:7s} {name:32s} {row['perplexity']:9.4f}  x{row['ratio']:.4f}  {size}", flush=True)
                if args.json:
                    args.json.write_text(json.dumps(rows, indent=1))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
