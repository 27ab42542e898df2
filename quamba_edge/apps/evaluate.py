"""`quamba-edge eval --ppl`: perplexity of a bundle, or of the checkpoint it came from, on a text.

The convention, the same for both and printed with every number: the text is tokenized whole, cut into consecutive windows
of `window` tokens, each window read from an empty state, its first token not scored.  Padded vocabulary rows take no part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quamba_edge import models
from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import BadCheckpoint, BadText, BadUsage, Missing
from quamba_edge.runtime.session import Engine
from quamba_edge.runtime.tokenizer import Tokenizer

Progress = Callable[[int, int, str], None]
CHUNK = 128  # tokens of each window whose logits are held at a time (runtime/session.py)
BATCH_BYTES = 128 << 20  # of logits: how many windows advance together


@dataclass(frozen=True)
class EvalResult:
    """perplexity = exp(nll); nll is the mean of -log p in nats over `tokens` scored tokens."""

    perplexity: float
    tokens: int
    nll: float
    target: str
    backend: str
    window: int
    convention: str


def evaluate(
    target: str,
    text: Path,
    *,
    window: int = 1024,
    limit_tokens: int | None = None,
    backend: str | None = None,
    state_dtype: str | None = None,
    threads: int | None = None,
    tokenizer: Path | None = None,
    progress: Progress = lambda done, total, text: None,
) -> EvalResult:
    """Perplexity of `target`, a bundle file or a checkpoint (folder or Hub name), on the first `limit_tokens` tokens of `text`.

    `tokenizer` is for checkpoints that come without one.  A checkpoint is measured by the torch reference in float32.
    """
    if window < 2:
        raise BadUsage(f"--window is {window}: expected 2 or more, because the first token of a window is not scored")
    if limit_tokens is not None and limit_tokens < 2:
        raise BadUsage(f"--limit-tokens is {limit_tokens}: expected 2 or more")
    words = read_text(text)
    if Path(target).is_file():
        if tokenizer is not None:
            raise BadUsage("--tokenizer is for checkpoints: a bundle has its own")
        with Bundle.open(Path(target)) as bundle:
            engine = Engine(bundle, backend or "auto", state_dtype or "f16", threads)
            vocabulary = bundle.manifest.vocab_size
            ids = encode(bundle.tokenizer_json(), words, vocabulary, target)[:limit_tokens]
            nll = list(of_bundle(engine, windows(ids, window), vocabulary, progress))
            return _result(nll, target, engine.backend.name, window)
    if (backend, state_dtype, threads) != (None, None, None):
        raise BadUsage(
            "--backend, --state-dtype and --threads are for bundles: a checkpoint is measured by the torch reference"
        )
    checkpoint = open_source(target, tokenizer)
    ids = encode(checkpoint.tokenizer_json, words, checkpoint.config.true_vocab_size, target)[:limit_tokens]
    return _result(list(of_checkpoint(checkpoint, windows(ids, window), progress)), target, "torch reference", window)


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as e:
        raise BadText(f"{path}: {e.strerror}; expected a text file") from None
    except UnicodeDecodeError as e:
        raise BadText(f"{path}: no UTF-8 text at byte {e.start}; convert it first") from None


def encode(tokenizer_json: str | None, text: str, vocabulary: int, target: str) -> np.ndarray:
    """(T,) ids of the whole text, by the target's tokenizer."""
    if not tokenizer_json:
        raise BadCheckpoint(f"{target} comes without a tokenizer: name its tokenizer.json with --tokenizer FILE")
    ids = np.asarray(Tokenizer(tokenizer_json, f"{target}: tokenizer.json").encode(text), np.int64)
    if ids.size and int(ids.max()) >= vocabulary:
        raise BadText(
            f"the text has token {int(ids.max())}, {target} has ids up to {vocabulary - 1}: not its tokenizer"
        )
    return ids


def windows(ids: np.ndarray, window: int) -> list[np.ndarray]:
    """Consecutive windows of `window` tokens; the last may be shorter, and is left out when it has nothing to score."""
    cut = [ids[i : i + window] for i in range(0, len(ids), window)]
    cut = [w for w in cut if len(w) > 1]
    if not cut:
        raise BadText(
            f"the text has {len(ids)} tokens: at least 2 are needed, and some thousands for a number worth quoting"
        )
    return cut


def of_bundle(engine: Any, cut: list[np.ndarray], vocabulary: int, progress: Progress) -> Iterator[np.ndarray]:
    """-log p of every scored token, window by window; windows of equal length advance together."""
    batch = max(1, min(8, BATCH_BYTES // (4 * CHUNK * vocabulary)))
    done = 0
    while done < len(cut):
        same = [w for w in cut[done : done + batch] if len(w) == len(cut[done])]
        yield from -np.asarray(engine.score(np.stack(same)), np.float64)
        done += len(same)
        progress(done, len(cut), "windows")


def of_checkpoint(checkpoint: Any, cut: list[np.ndarray], progress: Progress) -> Iterator[np.ndarray]:
    """-log p of every scored token by the torch reference, window by window."""
    import torch

    vocabulary = checkpoint.config.true_vocab_size
    lm = models.find(checkpoint.family, "reference").LM.from_checkpoint(checkpoint, dtype=torch.float32)
    for done, ids in enumerate(cut, 1):
        with torch.no_grad():
            logits, _ = lm(torch.from_numpy(ids)[None])
            chances = logits[0, :-1, :vocabulary].double().log_softmax(-1)
            yield -chances.gather(1, torch.from_numpy(ids[1:, None]))[:, 0].numpy()
        progress(done, len(cut), "windows")


def open_source(target: str, tokenizer: Path | None) -> Any:
    """The checkpoint, or Missing when this machine is a board without torch."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise Missing(
            "a checkpoint needs torch, which is not here: pip install 'quamba-edge[pack]'; a bundle does not"
        ) from None
    from quamba_edge.checkpoint import open_checkpoint

    return open_checkpoint(target, tokenizer=tokenizer)


def _result(nll: list[np.ndarray], target: str, backend: str, window: int) -> EvalResult:
    every = np.concatenate(nll)
    mean = float(every.mean())
    said = f"consecutive windows of {window} tokens, each from an empty state, the first token of each not scored"
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return EvalResult(perplexity, int(every.size), mean, target, backend, window, said)


def summary(result: EvalResult) -> str:
    return (
        f"perplexity {result.perplexity:.4f}  ({result.nll:.5f} nats a token, {result.tokens} tokens, {result.backend})\n"
        f"{result.convention}"
    )
