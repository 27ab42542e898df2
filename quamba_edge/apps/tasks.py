"""`quamba-edge eval --tasks`: zero-shot tasks asked of a bundle on any backend, or of the checkpoint it came from in torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from quamba_edge import models
from quamba_edge.apps.evaluate import open_source
from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import BadCheckpoint, BadUsage
from quamba_edge.runtime.session import Engine
from quamba_edge.runtime.tokenizer import Tokenizer
from quamba_edge.tasks import rows, run
from quamba_edge.tasks.prompts import FEWSHOT
from quamba_edge.tasks.reader import BATCHES, BLOCK, BundleReader, Reader

table = run.table


def evaluate(
    target: str,
    tasks: str,
    data: Path,
    *,
    limit: int | None = None,
    seed: int | None = None,
    fewshot: int | None = None,
    backend: str | None = None,
    state_dtype: str | None = None,
    threads: int | None = None,
    tokenizer: Path | None = None,
    progress: run.Progress = lambda done, total, text: None,
) -> dict[str, dict[str, Any]]:
    """{task: {acc, acc_stderr, acc_ci95, acc_norm..., n, fewshot, backend}} of the tasks in "a,b" or "all" on the files in `data`.

    `limit` questions of each (sub)task, the first ones or with a `seed` random ones.  BadText names a file that is missing.
    """
    names = rows.known(tasks)
    if fewshot is not None and not set(names) & set(FEWSHOT):
        raise BadUsage(f"--fewshot {fewshot} is for {', '.join(FEWSHOT)}: the other tasks show no worked examples")
    if seed is not None and limit is None:
        raise BadUsage("--seed chooses the questions of --limit: without it all are asked")
    asked = [run.ask(name, data, limit=limit, seed=seed, fewshot=fewshot) for name in names]
    with ExitStack() as stack:
        model = open_target(stack, target, backend, state_dtype, threads, tokenizer)
        return {a.task: run.answer(model, a, progress) for a in asked}


def open_target(
    stack: ExitStack,
    target: str,
    backend: str | None = None,
    state_dtype: str | None = None,
    threads: int | None = None,
    tokenizer: Path | None = None,
) -> run.Target:
    """A bundle file or a checkpoint (folder or Hub name), ready to read; `stack` closes what it opens."""
    if Path(target).is_file():
        if tokenizer is not None:
            raise BadUsage("--tokenizer is for checkpoints: a bundle has its own")
        bundle = stack.enter_context(Bundle.open(Path(target)))
        words = Tokenizer(bundle.tokenizer_json(), f"{target}: tokenizer.json")
        engine = Engine(bundle, backend or "auto", state_dtype or "f16", threads)
        return run.Target(
            BundleReader(engine),
            words,
            bundle.manifest.tokenizer.get("bos"),
            frozenset(bundle.manifest.tokenizer["eos"]),
        )
    if (backend, state_dtype, threads) != (None, None, None):
        raise BadUsage(
            "--backend, --state-dtype and --threads are for bundles: a checkpoint is asked by the torch reference"
        )
    checkpoint = open_source(target, tokenizer)
    if not checkpoint.tokenizer_json:
        raise BadCheckpoint(f"{target} comes without a tokenizer: name its tokenizer.json with --tokenizer FILE")
    words = Tokenizer(checkpoint.tokenizer_json, f"{target}: tokenizer.json")
    return run.Target(CheckpointReader(checkpoint), words, words.bos_id(), frozenset(words.eos_ids()))


class CheckpointReader(Reader):
    """A checkpoint by the torch reference in float32."""

    name = "torch reference"
    sizes = (32, 16, *BATCHES)  # no plan is recorded for each; beyond 32 short texts nothing more is won
    _states: Any  # of all layers, for the sequences that go on together

    def __init__(self, checkpoint: Any):
        import torch

        self.vocab_size = checkpoint.config.true_vocab_size
        self._lm = models.find(checkpoint.family, "reference").LM.from_checkpoint(checkpoint, dtype=torch.float32)
        self.read(np.zeros((1, 1), np.int64), None)  # how large a state is, it says itself
        self.state_bytes = sum(t.nbytes for layer in self._states for t in (layer.conv, layer.ssm))

    def chunks(self, count: int) -> list[int]:
        """Any length is one call here: only the logits' memory makes it several."""
        return [BLOCK] * (count // BLOCK) + [count % BLOCK] * (count % BLOCK > 0)

    def begin(self, sequences: int, before: Sequence[Any] | None) -> None:
        import torch

        self._states = None
        if before is not None:
            join = torch.cat
            self._states = [
                type(layers[0])(join([s.conv for s in layers]), join([s.ssm for s in layers]))
                for layers in zip(*before, strict=True)
            ]

    def step(self, ids: np.ndarray, logits: str) -> np.ndarray:
        import torch

        with torch.no_grad():
            found, self._states = self._lm(torch.from_numpy(np.ascontiguousarray(ids, np.int64)), self._states)
        return np.asarray(found[..., : self.vocab_size].numpy())

    def end(self, sequences: int) -> list[Any]:
        return [
            [type(layer)(layer.conv[s : s + 1], layer.ssm[s : s + 1]) for layer in self._states]
            for s in range(sequences)
        ]
