"""The walk over a checkpoint: one layer in memory at a time, each finished piece a part file in the work folder.

    tokens → embedding → layer 0 → layer 1 → … → head

Two streams of hidden states go along: that of the quantized model on the calibration windows (what each layer is quantized
against), and that of the source on held-out windows (for its perplexity).  They are saved with every layer, so a
stopped run resumes at the layer it was in, and gives the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quamba_edge import layouts, models
from quamba_edge.bundle.writer import Part, write_part
from quamba_edge.calibrate import text
from quamba_edge.errors import BadText, BadUsage
from quamba_edge.quant import edges
from quamba_edge.quant.hadamard import rotate
from quamba_edge.quant.layer import quantize_layer, site_record
from quamba_edge.quant.recipe import Recipe
from quamba_edge.quant.transform import layer_reader

Progress = Callable[[int, int, str], None]  # done, total, what
SELF_SAMPLING_LIMIT = (
    1_500_000_000  # parameters; a larger model is not loaded whole just to write its own calibration text
)


def parameter_count(checkpoint: Any) -> int:
    """Weights in the source, a tied head counted once."""
    names = [n for n in checkpoint.names() if not (checkpoint.config.tie_embeddings and n == "lm_head.weight")]
    return sum(int(np.prod(checkpoint.shape(n))) for n in names)


class Work:
    """The folder OUT.work/: what job it is, its token windows, finished parts, and the streams after the last of them."""

    def __init__(self, folder: Path, job: dict[str, Any], resume: bool):
        self.folder, note = folder, folder / "job.json"
        found = json.loads(note.read_text()) if note.exists() else None
        if resume and found != job:
            changed = (
                "there is none"
                if found is None
                else "it differs in " + ", ".join(k for k in job if found.get(k) != job[k])
            )
            raise BadUsage(
                f"--resume: no unfinished job like this in {folder} ({changed}); run without --resume to start anew"
            )
        if not resume and found == job and any(folder.glob("part-*")):
            raise BadUsage(
                f"{folder} holds finished layers of this very job: add --resume to go on, or delete the folder"
            )
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(note, json.dumps(job).encode())

    def part(self, name: str) -> Path:
        """Where the finished tensors of a piece ("embedding", "layer-003", "head") are kept."""
        return self.folder / f"part-{name}"

    def source_nll(self) -> float | None:
        """Mean nats per token of the source on the held-out windows, once the head is done; None if there are none."""
        found: float | None = Part.open(self.part("head")).note["source_nll"]
        return found

    def save_streams(self, stage: int, stream: torch.Tensor, exact: torch.Tensor) -> None:
        path = self.folder / f"streams-{stage}.npy"
        both = np.concatenate([stream.numpy().reshape(-1), exact.numpy().reshape(-1)])
        with open(path.with_suffix(".tmp"), "wb") as f:
            np.save(f, both)
        os.replace(path.with_suffix(".tmp"), path)
        for old in self.folder.glob("streams-*.npy"):
            if old != path:
                old.unlink()

    def load_streams(self, windows: text.Windows, width: int) -> tuple[int, torch.Tensor, torch.Tensor] | None:
        """(stages done, stream, exact), or None if the embedding is yet to be done."""
        saved = sorted(self.folder.glob("streams-*.npy"), key=lambda p: int(p.stem.split("-")[1]))
        if not saved:
            return None
        flat = torch.from_numpy(np.load(saved[-1]))
        size = windows.calib.size * width
        shape = lambda w: (*w.shape, width)
        return (
            int(saved[-1].stem.split("-")[1]),
            flat[:size].reshape(shape(windows.calib)),
            flat[size:].reshape(shape(windows.held)),
        )


def write_atomic(path: Path, data: bytes) -> None:
    """The whole file or none of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


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
    np.savez(kept, calib=windows.calib, held=windows.held)
    write_atomic(record, json.dumps(windows.record).encode())
    return windows


def quantize_parts(
    work: Work, checkpoint: Any, recipe: Recipe, windows: text.Windows, progress: Progress
) -> tuple[dict[str, Any], list[Path]]:
    """Quantize everything that is not on disk yet; the manifest's sites, and the part files in bundle order."""
    config, family = checkpoint.config, checkpoint.family
    names = ["embedding", *(f"layer-{i:03d}" for i in range(config.n_layer)), "head"]
    total = config.n_layer + 2
    done = work.load_streams(windows, config.d_model)
    if done is None:
        progress(0, total, "embedding")
        stream, exact = _embed(work, checkpoint, recipe, windows)
        first = 0
    else:
        first, stream, exact = done
    read = layer_reader(checkpoint, family)
    for i in range(first, config.n_layer):
        progress(i + 1, total, f"layer {i}")
        made = quantize_layer(i, read(i), family, config, recipe, stream, exact)
        prefix = f"layers.{i}."
        tensors = [(prefix + n, array.shape, layout, layouts.pack(layout, array)) for n, layout, array in made.tensors]
        write_part(work.part(names[i + 1]), tensors, {"sites": {prefix + n: s for n, s in made.sites.items()}})
        work.save_streams(i + 1, stream, exact)
    progress(config.n_layer + 1, total, "output head")
    _head(work, checkpoint, recipe, windows, stream, exact)
    sites: dict[str, Any] = {}
    for name in names:
        sites.update(Part.open(work.part(name)).note["sites"])
    return sites, [work.part(n) for n in names]


def _embed(work: Work, checkpoint: Any, recipe: Recipe, windows: text.Windows) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize the embedding; both streams begin as its rows."""
    name = "backbone.embedding.weight"
    scheme = replace(recipe.scheme("embedding"), method="rtn", act=16)
    made = edges.store_edge(checkpoint, name, scheme, recipe, None, None, recipe.signed_embedding)
    record = {"embedding": site_record(checkpoint.shape(name), scheme)}
    write_part(work.part("embedding"), [(f"embedding.{n}", *rest) for n, *rest in made], {"sites": record})
    stream = torch.from_numpy(edges.looked_up(made, scheme, windows.calib))
    exact = torch.empty(*windows.held.shape, checkpoint.config.d_model)
    for index, token in enumerate(windows.held.reshape(-1)):
        exact.view(-1, exact.shape[-1])[index] = checkpoint.tensor(name, slice(int(token), int(token) + 1))[0].float()
    exact = rotate(exact) if recipe.rotate else exact
    work.save_streams(0, stream, exact)
    return stream, exact


def _head(
    work: Work, checkpoint: Any, recipe: Recipe, windows: text.Windows, stream: torch.Tensor, exact: torch.Tensor
) -> None:
    """Quantize the head (its scale alone when tied), store the tokenizer, and measure the source on the held-out windows."""
    config = checkpoint.config
    norm = checkpoint.tensor("backbone.norm_f.weight").float()
    tied = config.tie_embeddings
    scheme = recipe.scheme("head")
    if tied:  # one matrix serves both ends; only how it is fed is the head's own
        embedding = recipe.scheme("embedding")
        scheme = replace(embedding, act=scheme.act if embedding.bits < 16 else 16, method="rtn")
    scale, factor = edges.observe_head(
        stream, config, recipe, norm, hessian=not tied and scheme.bits < 16 and scheme.method == "gptq"
    )
    tensors = [("norm_f.weight", norm.shape, "row", layouts.pack("row", norm.numpy()))] if tied else []
    if not tied:
        made = edges.store_edge(checkpoint, "lm_head.weight", scheme, recipe, norm, factor, False)
        tensors += [(f"head.{n}", *rest) for n, *rest in made]
    if scheme.act == 8:
        tensors.append(("head.in_scale", (1,), "row", layouts.pack("row", scale.reshape(1).numpy())))
    if checkpoint.tokenizer_json is not None:
        packed = np.frombuffer(zlib.compress(checkpoint.tokenizer_json.encode(), 9), np.uint8)
        tensors.append(("tokenizer.json", packed.shape, "row", layouts.pack("row", packed)))
    nll = edges.negative_log_likelihood(checkpoint, exact, windows.held, config, recipe) if len(windows.held) else None
    record = {"head": site_record(checkpoint.shape("lm_head.weight"), scheme)}
    write_part(work.part("head"), tensors, {"sites": record, "source_nll": nll})
