"""What each step of 4-bit quantization buys, by the divergence from the source on held-out text; run by hand.

    python tests/bench/four_bits.py --models DIR... --calib TRAIN --texts VALID... [--mode w4a16] [--seeds 3] [--samples 128]
        [--windows 24] [--only NAME...] [--json FILE]

Each variant is the shipped recipe with something changed.  A model is quantized layer by layer as `pack` does it; beside that, windows
of every text run through what the layer's stored tensors stand for.  No bundle is written.

KL    mean over positions of KL(source || quantized) in 1e-3 nats; perplexity of so small a model moves by luck, KL cannot
+-    standard error over windows of the difference from the first variant, paired window by window, seeds averaged first;
      behind it the least and the largest of the seeds' differences
bits  of everything but the tokenizer, by the manifest's tensors, over the checkpoint's parameters
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, from anywhere

from quamba_edge.bundle.outline import outline, weight_bytes  # noqa: E402
from quamba_edge.calibrate.observe import FakeQuant, fake_quant  # noqa: E402
from quamba_edge.calibrate.text import Draw, cut_windows, read_documents  # noqa: E402
from quamba_edge.checkpoint import open_checkpoint  # noqa: E402
from quamba_edge.quant import edges, site  # noqa: E402
from quamba_edge.quant.hadamard import rotate  # noqa: E402
from quamba_edge.quant.layer import REPAIRED, QuantizedLayer, layer_schemes, quantize_layer, repairs  # noqa: E402
from quamba_edge.quant.recipe import Recipe, shipped  # noqa: E402
from quamba_edge.quant.running import make_block, run_layer  # noqa: E402
from quamba_edge.quant.transform import Weights, layer_reader, rotate_layer  # noqa: E402
from quamba_edge.quant.walk import parameter_count  # noqa: E402
from quamba_edge.runtime.tokenizer import Tokenizer  # noqa: E402

LENGTH = 512  # tokens of a window


def sites(recipe: Recipe, wanted: Callable[[str], bool], **changes: Any) -> Recipe:
    """The recipe with the schemes of some patterns changed."""
    return replace(recipe, sites={p: replace(s, **changes) if wanted(p) else s for p, s in recipe.sites.items()})


VARIANTS: dict[str, Callable[[Recipe], Recipe]] = {
    "shipped": lambda r: r,
    "no repair": lambda r: replace(r, repair=0.0),
    "whole repair": lambda r: replace(r, repair=1.0),
    "no refinement": lambda r: replace(r, refine=0),
    "neither": lambda r: replace(r, repair=0.0, refine=0),
    "largest input / 127": lambda r: replace(r, act_search=False),
    "B, C per group": lambda r: replace(r, bc_grain="group"),
    "none of these": lambda r: replace(r, repair=0.0, refine=0, act_search=False, bc_grain="group"),
    "round to nearest": lambda r: r.with_method("rtn"),
    "no search of scales": lambda r: replace(r, clip_search=False),
    "groups of 64": lambda r: sites(r, lambda p: p == "*", group=64),
    "groups of 32": lambda r: sites(r, lambda p: p == "*", group=32),
    "groups of 32, 6-bit edges": lambda r: shipped(f"{r.name}-g32"),
    "4-bit edges": lambda r: sites(r, lambda p: p in ("embedding", "head"), bits=4),
    "6-bit edges": lambda r: sites(r, lambda p: p in ("embedding", "head"), bits=6),
}


class Subject:
    """One checkpoint, its calibration ids, and the source's hidden states and chances on the windows that are scored."""

    @torch.no_grad()
    def __init__(self, folder: Path, calib: Path, texts: list[Path], windows: int):
        self.checkpoint = open_checkpoint(folder)
        self.config, self.family = self.checkpoint.config, self.checkpoint.family
        assert self.config.tie_embeddings, "written for models whose head is their embedding"
        words = Tokenizer(self.checkpoint.tokenizer_json)
        self.calib, *ids = (
            np.concatenate([np.asarray(words.encode(d), np.int64) for d in read_documents(t)]) for t in [calib, *texts]
        )
        spots = [np.linspace(0, len(i) - LENGTH, windows).astype(int) for i in ids]
        self.held = np.concatenate(
            [np.stack([i[s : s + LENGTH] for s in at]) for i, at in zip(ids, spots, strict=True)]
        )
        self.norm = self.checkpoint.tensor("backbone.norm_f.weight").float()
        matrix = self.checkpoint.tensor("backbone.embedding.weight").float()
        self.read = layer_reader(self.checkpoint, self.family)
        stream = matrix[torch.from_numpy(self.held)]
        for i in range(self.config.n_layer):
            run_layer(make_block(self.family, self.config, self.read(i)), stream, lambda name, v: v, out=stream)
        normed = edges.normed(stream, self.config.norm_eps) * self.norm
        rows = matrix[: self.config.true_vocab_size]
        self.logs = [(w[:-1] @ rows.T).log_softmax(-1).half() for w in normed]  # a window at a time


@torch.no_grad()
def divergence(subject: Subject, recipe: Recipe, samples: int, seed: int) -> np.ndarray:
    """KL(source || quantized by recipe) of every held-out window, in nats."""
    assert recipe.rotate, "in the rotated basis"
    s, config = subject, subject.config
    windows = cut_windows(s.calib, Draw(samples, LENGTH, 0, seed))[0]
    scheme = replace(recipe.scheme("embedding"), method="rtn", act=16)
    name = "backbone.embedding.weight"
    made = edges.store_edge(s.checkpoint, name, scheme, recipe)
    stream, held = (edges.looked_up(made, scheme, ids) for ids in (windows, s.held))
    layers = [layer_schemes(recipe, i, s.family) for i in range(config.n_layer)]
    aims = any(repairs(recipe, schemes[n]) for schemes in layers for n in REPAIRED)
    source = edges.exact_rows(s.checkpoint, name, windows, recipe) if aims else None
    for i, schemes in enumerate(layers):
        exact = torch.zeros(1, 2, config.d_model)
        layer = quantize_layer(i, s.read(i), s.family, config, recipe, stream, exact, source)
        block, scales = as_stored(layer, rotate_layer(s.read(i)), schemes, s.family, config)
        run_layer(block, held, FakeQuant(rotate, scales), out=held)
    act = recipe.scheme("head").act
    scale, _ = edges.observe_head(stream, config, recipe, s.norm, act, False)
    matrix = edges.looked_up(made, scheme, np.arange(config.true_vocab_size)[None])[0]
    found = []
    for window, log in zip(held, s.logs, strict=True):
        x = edges.head_input(window[:-1], config, recipe, s.norm)
        ours = ((fake_quant(x, scale) if act == 8 else x.half().float()) @ matrix.T).log_softmax(-1)
        found.append(float((log.float().exp() * (log.float() - ours)).sum(-1).mean()))
    return np.array(found)


def as_stored(
    layer: QuantizedLayer, weights: Weights, schemes: dict[str, Any], family: str, config: Any
) -> tuple[Any, dict[str, Tensor]]:
    """The block that a layer's stored tensors make, and the scales of its activations by tap; weights: rotated, as read."""
    stored = {name: torch.from_numpy(array) for name, _, array in layer.tensors}
    scales = {n: stored[f"{n}.in_scale"] for n, scheme in schemes.items() if scheme.act == 8 and n != "x_proj"}
    if "conv.out_scale" in stored:
        shared = config.ngroups * config.d_state if family == "mamba2" else 0
        parts = stored["conv.out_scale"].split([config.d_inner, shared, shared])
        scales |= {tap: part for tap, part in zip("xBC", parts, strict=True) if len(part)}
    for n, scheme in schemes.items():
        parts = {part: stored[f"{n}.{part}"] for part in site.specs((1, 1), scheme)}
        value = site.decode(parts, scheme)
        weights[f"mixer.{n}.weight"] = value / scales["x"] if n == "x_proj" and "x" in scales else value
    return make_block(family, config, weights), scales


def bits(subject: Subject, recipe: Recipe) -> float:
    """Bits a weight of a bundle by that recipe."""
    manifest = outline(subject.family, subject.config, recipe)
    return 8 * weight_bytes(manifest) / parameter_count(subject.checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--mode", default="w4a16")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--windows", type=int, default=24, help="of each text (24)")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for folder in args.models:
        subject, base, of_first = Subject(folder, args.calib, args.texts, args.windows), None, None
        print(f"\n{folder.name} {args.mode}, {args.samples} windows to calibrate on, {args.seeds} seeds", flush=True)
        for name in args.only:
            recipe, began = VARIANTS[name](shipped(args.mode)), time.monotonic()
            runs = np.stack([divergence(subject, recipe, args.samples, seed) for seed in range(args.seeds)])
            each = 1e3 * runs.mean(0).reshape(len(args.texts), -1)  # (texts, windows)
            base = each if base is None else base
            gap = each - base
            error = gap.std(1, ddof=1) / gap.shape[1] ** 0.5
            size, seconds = bits(subject, recipe), time.monotonic() - began
            spread = 1e3 * runs.reshape(args.seeds, len(args.texts), -1).mean(2)
            of_first = spread if of_first is None else of_first
            ends = (spread - of_first).min(0), (spread - of_first).max(0)
            columns = zip(each.mean(1), gap.mean(1), error, *ends, strict=True)
            cells = [f"{k:7.2f} ({g:+.2f} ± {e:.2f}, {a:+.2f} to {b:+.2f})" for k, g, e, a, b in columns]
            print(f"  {name:22s} {size:5.2f} bits  {'  '.join(cells)}  {seconds:.0f} s", flush=True)
            rows.append({"model": folder.name, "mode": args.mode, "variant": name, "bits": size})
            rows[-1] |= {"kl": each.mean(1).tolist(), "gap": gap.mean(1).tolist(), "gap_se": error.tolist()}
            rows[-1] |= {"by_seed": spread.tolist(), "texts": [t.name for t in args.texts]}
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
