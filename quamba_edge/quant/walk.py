"""The walk over a checkpoint: one layer in memory at a time, each finished piece a part file in the work folder.

    tokens → embedding → layer 0 → layer 1 → … → head

Streams of hidden states go along: that of the quantized model on the calibration windows (what each layer is quantized
against), that of the source on the same windows (what 4-bit layers aim at), and that of the source on held-out windows (for its
perplexity).  They are saved with every layer, so a stopped run resumes at the layer it was in, and gives the same bytes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quamba_edge import layouts, models
from quamba_edge.bundle.writer import Part, Stored, replacing, write_part
from quamba_edge.calibrate import text
from quamba_edge.errors import BadText
from quamba_edge.quant import edges, site
from quamba_edge.quant.layer import REPAIRED, layer_schemes, quantize_layer, repairs
from quamba_edge.quant.recipe import Recipe
from quamba_edge.quant.transform import layer_reader
from quamba_edge.quant.work import Streams, Work

Progress = Callable[[int, int, str], None]  # done, total, what
SELF_SAMPLING_LIMIT = 1_500_000_000  # parameters; a larger model is not loaded whole just to write calibration text


def parameter_count(checkpoint: Any) -> int:
    """Weights in the source, a tied head counted once."""
    names = [n for n in checkpoint.names() if not (checkpoint.config.tie_embeddings and n == "lm_head.weight")]
    return sum(int(np.prod(checkpoint.shape(n))) for n in names)


def token_windows(
    work: Work, checkpoint: Any, calib: Path | None, tokenizer: Any, draw: text.Draw, progress: Progress
) -> text.Windows:
    """Token windows of this job, kept in the work folder so that a resumed run sees the same.  No `calib`: the model writes them."""
    kept, record = work.folder / "windows.npz", work.folder / "windows.json"
    if record.exists():
        arrays = np.load(kept)
        return text.Windows(arrays["calib"], arrays["held"], json.loads(record.read_text()))
    vocab, parameters = checkpoint.config.true_vocab_size, parameter_count(checkpoint)
    if calib is not None:
        if tokenizer is None:
            raise BadText(
                f"{checkpoint.path} has no tokenizer.json, so text cannot become tokens: give --tokenizer FILE"
            )
        windows = text.from_file(calib, tokenizer.encode, vocab, draw)
    elif parameters > SELF_SAMPLING_LIMIT:
        size = f"{parameters / 1e9:.1f}B parameters"
        raise BadText(
            f"with no --calib FILE the model writes its own calibration text, which would hold all {size} in memory: give --calib FILE"
        )
    else:
        lm = models.find(checkpoint.family, "reference").LM.from_checkpoint(checkpoint)
        first = None if tokenizer is None else tokenizer.bos_id()
        windows = text.from_model(lm, first or 0, vocab, draw, progress)
    with replacing(kept) as f:
        np.savez(f, calib=windows.calib, held=windows.held)
    with replacing(record) as f:
        f.write(json.dumps(windows.record).encode())
    return windows


def quantize_parts(
    work: Work, checkpoint: Any, recipe: Recipe, windows: text.Windows, progress: Progress
) -> tuple[dict[str, Any], list[Path]]:
    """Quantize everything that is not on disk yet; the manifest's sites, and the part files in bundle order."""
    config, family = checkpoint.config, checkpoint.family
    total = config.n_layer + 2
    done = work.load_streams()
    if done is None:
        progress(0, total, "embedding")
        done = 0, _embedding(work, checkpoint, recipe, windows)
    first, streams = done
    read = layer_reader(checkpoint, family)
    for i in range(first, config.n_layer):
        progress(i + 1, total, f"layer {i}")
        made = quantize_layer(i, read(i), family, config, recipe, *streams)
        prefix = f"layers.{i}."
        packed = ((prefix + name, a.shape, layout, layouts.pack(layout, a)) for name, layout, a in made.tensors)
        write_part(work.part(_layer(i)), packed, {"sites": {prefix + name: s for name, s in made.sites.items()}})
        work.save_streams(i + 1, streams)
    progress(config.n_layer + 1, total, "output head")
    _head(work, checkpoint, recipe, windows, streams)
    parts = [work.part(name) for name in ("embedding", *map(_layer, range(config.n_layer)), "head")]
    sites: dict[str, Any] = {}
    for part in parts:
        sites.update(Part.open(part).note["sites"])
    return sites, parts


def source_nll(work: Work) -> float | None:
    """Mean nats per token of the source on the held-out windows, once the head is done; None if there are none."""
    found: float | None = Part.open(work.part("head")).note["source_nll"]
    return found


def _layer(i: int) -> str:
    return f"layer-{i:03d}"


def _embedding(work: Work, checkpoint: Any, recipe: Recipe, windows: text.Windows) -> Streams:
    """Quantize the embedding; the streams begin as its rows, as quantized or as they were."""
    name = "backbone.embedding.weight"
    scheme = replace(recipe.scheme("embedding"), method="rtn", act=16)
    made = edges.store_edge(checkpoint, name, scheme, recipe, signed=recipe.signed_embedding)
    record = site.record(checkpoint.shape(name), scheme)
    write_part(work.part("embedding"), _named("embedding", made), {"sites": {"embedding": record}})
    schemes = (layer_schemes(recipe, i, checkpoint.family) for i in range(checkpoint.config.n_layer))
    aims = any(repairs(recipe, layer[name]) for layer in schemes for name in REPAIRED)
    streams = Streams(
        edges.looked_up(made, scheme, windows.calib),
        edges.exact_rows(checkpoint, name, windows.held, recipe),
        edges.exact_rows(checkpoint, name, windows.calib, recipe) if aims else None,
    )
    work.save_streams(0, streams)
    return streams


def _head(work: Work, checkpoint: Any, recipe: Recipe, windows: text.Windows, streams: Streams) -> None:
    """Quantize the head (its scale alone when tied), store the tokenizer, and measure the source on the held-out windows."""
    config, name = checkpoint.config, "lm_head.weight"
    norm = checkpoint.tensor("backbone.norm_f.weight").float()
    tied, scheme = config.tie_embeddings, recipe.scheme("head")
    if tied:  # one matrix serves both ends; only how it is fed is the head's own
        embedding = recipe.scheme("embedding")
        scheme = replace(embedding, act=scheme.act if embedding.bits < 16 else 16, method="rtn")
    hessian = not tied and scheme.bits < 16 and scheme.method == "gptq"
    scale, factor = edges.observe_head(streams.stream, config, recipe, norm, scheme.act, hessian)
    tensors: list[Stored] = []
    if tied:
        tensors.append(("norm_f.weight", norm.shape, "row", layouts.pack("row", norm.numpy())))
    else:
        tensors += _named("head", edges.store_edge(checkpoint, name, scheme, recipe, fold=norm, guide=factor))
    if scheme.act == 8:
        tensors.append(("head.in_scale", (1,), "row", layouts.pack("row", scale.numpy())))
    if checkpoint.tokenizer_json is not None:
        packed = np.frombuffer(zlib.compress(checkpoint.tokenizer_json.encode(), 9), np.uint8)
        tensors.append(("tokenizer.json", packed.shape, "row", layouts.pack("row", packed)))
    nll = (
        edges.negative_log_likelihood(checkpoint, streams.exact, windows.held, config, recipe)
        if len(windows.held)
        else None
    )
    record = site.record(checkpoint.shape(name), scheme)
    write_part(work.part("head"), tensors, {"sites": {"head": record}, "source_nll": nll})


def _named(prefix: str, made: edges.Stored) -> list[Stored]:
    """The tensors of an edge under their names in the bundle."""
    return [(f"{prefix}.{part}", shape, layout, array) for part, shape, layout, array in made]
