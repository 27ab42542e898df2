"""Source checkpoints: a folder or a Hub name in, tensors by canonical name out, one at a time.

    config.json                            dimensions, in either dialect
    model.safetensors | pytorch_model.bin  weights, or shards with an index
    tokenizer.json, chat_template.jinja    if they are there
  or, of Mistral
    params.json, consolidated.safetensors, tokenizer.model.v3
  or, of Megatron-LM
    release/mp_rank_00/model_optim_rng.pt, NAME.model

Every name and shape is checked when the checkpoint is opened, from headers alone: hours later is too late.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from quamba_edge import models
from quamba_edge.checkpoint import megatron, spm
from quamba_edge.checkpoint.hub import (
    chat_template,
    license_of,
    locate,
    read_config,
    read_json,
    read_text,
    tokenizer_of,
)
from quamba_edge.checkpoint.tensors import FLOATS, Entry, TensorFile, open_file
from quamba_edge.errors import BadCheckpoint

LARGEST = torch.finfo(torch.float32).max  # weights are computed with in f32
EMBEDDING, HEAD = "backbone.embedding.weight", "lm_head.weight"
# Others' names → ours, which are mamba_ssm's: transformers, Megatron-LM, Mistral.
FOREIGN = {
    "backbone.embeddings.weight": EMBEDDING,
    "embedding.word_embeddings.weight": EMBEDDING,
    "decoder.final_norm.weight": "backbone.norm_f.weight",
    "output_layer.weight": HEAD,
}
PREFIXES = {"decoder.layers.": "backbone.layers.", "model.backbone.": "backbone.", "model.lm_head.": "lm_head."}
# In transformers' order of preference; then Mistral's.
HUGGING_FACE = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
FILES = (*HUGGING_FACE, "consolidated.safetensors")


class Checkpoint:
    """An opened checkpoint; see `open_checkpoint`.

    name       as people know it: the Hub's name (org/name), else the folder's
    config     family's Config; true_vocab_size is no more than the tokenizer's ids, when there is a tokenizer
    digest     sha256 over config, tensor table (names, shapes, dtypes, file sizes) and each tensor's first row: it costs
               milliseconds, and tells one training run of an architecture from another
    bytes      what the weights occupy as stored, a tied head counted once
    """

    path: Path
    name: str
    family: str
    config: Any
    license: str | None
    tokenizer_json: str | None
    chat_template: str | None
    digest: str
    bytes: int

    def __init__(self, folder: Path, tokenizer: Path | None = None, name: str | None = None):
        self.path, self.name = folder, name or folder.name or folder.resolve().name
        self.family, self.config = read_config(folder)
        files = _weight_files(folder)
        self._stored = _collect(files)
        self._check()
        self.bytes = sum(self._stored[n][1].nbytes for n in self.names() if n != HEAD or not self.config.tie_embeddings)
        self.digest = self._digest(files)
        self.license = license_of(folder)
        self.chat_template = chat_template(folder)
        self.tokenizer_json = self._tokenizer(tokenizer)

    def names(self) -> list[str]:
        """Canonical names; with the head, which a tied model reads from the embedding."""
        return list(self._expected)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._expected[name]

    def tensor(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """The tensor in its stored dtype, in memory of its own; with `rows` (step 1) only those are read.

        KeyError for a name that is not in `names()`, BadCheckpoint for a NaN, an infinity, or what f32 cannot hold.
        """
        file, entry = self._stored[self._source(name)]
        values = file.read(entry.name, rows)
        if values.numel():
            low, high = (float(v) for v in torch.aminmax(values))  # a NaN is both
            if not -LARGEST <= low <= high <= LARGEST:
                place = (~(values.double().abs() <= LARGEST)).nonzero()[0].tolist()
                found = float(values[tuple(place)])
                place[0] += rows.start or 0 if rows is not None else 0
                raise BadCheckpoint(
                    f"{file.path}: {entry.name} has {found:g} at {place}, expected finite numbers: "
                    "copy or download it again, or take a checkpoint from before the training went wrong"
                )
        return values

    def _source(self, name: str) -> str:
        return EMBEDDING if name == HEAD and self.config.tie_embeddings else name

    def _check(self) -> None:
        """Every expected tensor there, of its shape, in floats; none besides."""
        stored = dict(self._stored)
        if self.config.n_layer > len(stored):  # before a list of names is made that config.json alone can make endless
            raise BadCheckpoint(
                f"{self.path}: config.json says {self.config.n_layer} layers, the weights are {len(stored)} tensors"
            )
        self._expected = models.find(self.family, "weights").expected(self.config)
        for name, shape in self._expected.items():
            source = self._source(name)
            if source not in self._stored:
                tied = (
                    ' (tied to the embedding? then config.json must say "tie_word_embeddings": true)'
                    if name == HEAD
                    else ""
                )
                raise BadCheckpoint(
                    f"{self.path}: {name} is missing, expected {list(shape)}{tied}; is a file or shard missing?"
                )
            for file, entry in [self._stored[source], *([self._stored[name]] if name in self._stored else [])]:
                if entry.shape != shape:
                    raise BadCheckpoint(
                        f"{file.path}: {entry.name} has shape {list(entry.shape)}, expected {list(shape)} by the dimensions"
                    )
                if entry.dtype not in FLOATS:
                    raise BadCheckpoint(
                        f"{file.path}: {entry.name} is {entry.dtype}, expected {', '.join(FLOATS)}: not a quantized model"
                    )
            stored.pop(name, None)
        for name, (file, _) in stored.items():
            more = f" and {len(stored) - 1} more" if len(stored) > 1 else ""
            raise BadCheckpoint(
                f"{file.path}: {name}{more}: expected no such tensor in such a model; without it the model would be another"
            )

    def _digest(self, files: list[TensorFile]) -> str:
        table = sorted((name, entry.dtype, entry.shape) for name, (_, entry) in self._stored.items())
        sizes = [(f.path.name, f.path.stat().st_size) for f in files]
        seen = [self.family, self.config.to_json(), table, sizes]
        digest = hashlib.sha256(json.dumps(seen, sort_keys=True).encode())
        for name, shape in self._expected.items():
            row = self.tensor(name, slice(0, 1)) if len(shape) > 1 else self.tensor(name)
            digest.update(row.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _tokenizer(self, given: Path | None) -> str | None:
        """The text of tokenizer.json; narrows true_vocab_size to the ids it knows."""
        path = given if given is not None else spm.beside(self.path)
        if path is None:
            return None
        if not path.is_file():
            raise BadCheckpoint(f"{path}: no such file, expected a tokenizer.json or a SentencePiece .model")
        text = spm.tokenizer_json(path) if spm.is_model(path) else read_text(path)
        from tokenizers import Tokenizer

        try:
            ids = max(Tokenizer.from_str(text).get_vocab(with_added_tokens=True).values(), default=-1) + 1
        except Exception as e:  # the library raises bare Exception
            raise BadCheckpoint(
                f"{path}: not a tokenizers JSON file ({e}); expected what tokenizer.json holds"
            ) from None
        if not 0 < ids <= self.config.vocab_size:
            raise BadCheckpoint(
                f"{path}: has {ids} ids, the model {self.config.vocab_size} vocabulary rows: it is not this model's tokenizer"
            )
        self.config = replace(self.config, true_vocab_size=min(self.config.true_vocab_size, ids))
        return text


def open_checkpoint(name_or_path: str | Path, *, tokenizer: str | Path | None = None) -> Checkpoint:
    """Open a checkpoint: a folder, or a Hugging Face name (org/name), which is downloaded.

    `tokenizer` is a tokenizer.json or a SentencePiece .model to use instead of the folder's, or the Hub name of a model whose
    tokenizer.json to use.  Raises BadCheckpoint for whatever is wrong with the checkpoint, naming file and tensor, and Missing
    when the Hub cannot be reached.
    """
    folder = locate(name_or_path)
    name = None if Path(name_or_path).is_dir() else str(name_or_path)
    return Checkpoint(folder, None if tokenizer is None else tokenizer_of(tokenizer), name)


def _weight_files(folder: Path) -> list[TensorFile]:
    """The opened weight files: one, or the shards of an index, whose table they must bear out."""
    found = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if found is None and (pickled := megatron.find(folder)) is not None:
        return [megatron.MegatronFile(pickled)]
    if found is None:
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:8])
        raise BadCheckpoint(f"{folder}: has no weights ({there}); expected one of {', '.join(FILES)}")
    if found.suffix != ".json":
        return [open_file(found)]
    raw = read_json(found)
    table = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(table, dict) or not table or not all(isinstance(v, str) for v in table.values()):
        raise BadCheckpoint(f"{found}: has no weight_map from tensor names to file names; copy or download it again")
    suffix = ".safetensors" if ".safetensors" in found.name else ".bin"
    files = {}
    for shard in sorted(set(table.values())):
        if Path(shard).name != shard or not shard.endswith(suffix):
            raise BadCheckpoint(f"{found}: names {shard!r}, expected a {suffix} file beside it")
        if not (folder / shard).is_file():
            raise BadCheckpoint(f"{folder / shard}: is missing, {found.name} names it: copy or download it too")
        files[shard] = open_file(folder / shard)
    for name, shard in table.items():
        if name not in files[shard].entries:
            raise BadCheckpoint(
                f"{folder / shard}: {name} is missing, {found.name} says it is there: the shards are of different checkpoints"
            )
    return list(files.values())


def _collect(files: list[TensorFile]) -> dict[str, tuple[TensorFile, Entry]]:
    """(file, entry) of every tensor by its canonical name."""
    found: dict[str, tuple[TensorFile, Entry]] = {}
    for name, file, entry in _stored(files):
        if name in found:
            raise BadCheckpoint(
                f"{file.path}: {entry.name} is also in {found[name][0].path.name} as {found[name][1].name}: which one counts?"
            )
        found[name] = (file, entry)
    return found


def _stored(files: list[TensorFile]) -> Iterator[tuple[str, TensorFile, Entry]]:
    for file in files:
        for entry in file.entries.values():
            yield canonical(entry.name), file, entry


def canonical(name: str) -> str:
    """Our name of a stored tensor."""
    prefix = next((p for p in PREFIXES if name.startswith(p)), "")
    return FOREIGN.get(name, PREFIXES.get(prefix, "") + name.removeprefix(prefix))
