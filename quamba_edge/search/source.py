"""What the source model predicts on the held-out windows, kept on disk: a trial is measured against it without running it again.

The source is walked layer by layer, as packing does, so memory holds one layer and the stream.  Of large vocabularies the likeliest ids
are kept, and what is left to all others together: the divergence over so coarse a partition is a lower bound of the whole one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quamba_edge.bundle.writer import replacing
from quamba_edge.models.stack import identity
from quamba_edge.quant.edges import normed, slabs
from quamba_edge.quant.layer import make_block, run_layer
from quamba_edge.quant.transform import layer_reader

KEEP_BYTES = (
    256 << 20
)  # of probabilities and ids: 16,384 positions of 4,096 words whole, 8,192 positions with 4,096 likeliest of 50,277


@dataclass(frozen=True)
class Source:
    """Of M positions: chances (M, k) f32, their ids (M, k) i32 or None where all are kept in order; tokens (T, L), M = T * L."""

    tokens: np.ndarray
    chances: np.ndarray
    ids: np.ndarray | None
    plain: np.ndarray  # (M,): sum of p log p over the kept ids
    rest: np.ndarray  # (M,): chance of all other ids together
    nll: np.ndarray  # (T,): mean nats of a window's tokens but the first

    @classmethod
    def of(cls, tokens: np.ndarray, chances: np.ndarray, ids: np.ndarray | None, nll: np.ndarray) -> Source:
        plain, rest = np.empty(len(chances)), np.empty(len(chances))
        for a in range(0, len(chances), 1024):
            p = chances[a : a + 1024].astype(np.float64)
            plain[a : a + 1024] = (p * np.log(np.maximum(p, 1e-300))).sum(1)
            rest[a : a + 1024] = np.maximum(0.0, 1.0 - p.sum(1)) if ids is not None else 0.0
        return cls(tokens, chances, ids, plain, rest, nll)

    def divergence(self, where: slice, logits: np.ndarray) -> np.ndarray:
        """Nats (m,) by which logits (m, V) at the positions `where` differ: KL of the model's next-token distribution from the source's."""
        p = self.chances[where]
        peak = logits.max(1)
        total = np.log(np.exp(logits - peak[:, None]).sum(1, dtype=np.float64)) + peak
        chosen = logits if self.ids is None else np.take_along_axis(logits, self.ids[where], 1)
        found = self.plain[where] + total * p.sum(1, dtype=np.float64) - (p * chosen).sum(1, dtype=np.float64)
        if self.ids is None:
            return np.asarray(found)
        rest = self.rest[where]
        left = np.maximum(1.0 - np.exp(chosen - total[:, None]).sum(1), 1e-12)
        return np.asarray(found + rest * (np.log(np.maximum(rest, 1e-300)) - np.log(left)))


def load(folder: Path, tokens: np.ndarray, checkpoint: Any) -> Source:
    """The source's predictions for tokens (T, L), computed and written into `folder` where they are not there yet."""
    chances, ids, nll = (folder / f"source-{what}.npy" for what in ("chances", "ids", "nll"))
    if not chances.is_file():
        found, names, lost = predictions(checkpoint, tokens)
        for path, array in (
            (ids, names),
            (nll, lost),
            (chances, found),
        ):  # chances last: that they are there says that all are
            if array is not None:
                with replacing(path) as f:
                    np.save(f, array)
    kept = np.load(ids, mmap_mode="r") if ids.is_file() else None
    return Source.of(tokens, np.load(chances, mmap_mode="r"), kept, np.load(nll))


@torch.no_grad()
def predictions(
    checkpoint: Any, tokens: np.ndarray, keep_bytes: int = KEEP_BYTES
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Chances (M, k) f32 of the k likeliest next ids of every position of tokens (T, L), the ids, or None where k is all of them, and
    the mean nats (T,) that the source needs for a window's tokens but the first."""
    x = final_stream(checkpoint, tokens).flatten(0, 1)
    vocabulary, count = checkpoint.config.true_vocab_size, len(x)
    k = vocabulary if 4 * count * vocabulary <= keep_bytes else max(1, keep_bytes // (8 * count))
    following = torch.from_numpy(np.roll(tokens, -1, 1).reshape(-1).astype(np.int64))
    best, ids, total = torch.empty(count, 0), torch.empty(count, 0, dtype=torch.int32), torch.full((count,), -torch.inf)
    aimed = torch.empty(count)
    for a, w in slabs(checkpoint, "lm_head.weight"):
        w = w[: max(0, vocabulary - a)]
        if not len(w):
            break
        logits = x @ w.T
        total = torch.logaddexp(total, logits.logsumexp(1))
        here = (following >= a) & (following < a + len(w))
        aimed[here] = logits[here, following[here] - a]
        names = torch.arange(a, a + len(w), dtype=torch.int32).expand(count, -1)
        best, ids = torch.cat([best, logits], 1), torch.cat([ids, names], 1)
        if best.shape[1] > k:
            best, at = best.topk(k, 1)
            ids = ids.gather(1, at)
    nll = (total - aimed).double().reshape(tokens.shape)[:, :-1].mean(1)
    return best.sub_(total[:, None]).exp_().numpy(), None if k == vocabulary else ids.numpy(), nll.numpy()


@torch.no_grad()
def final_stream(checkpoint: Any, tokens: np.ndarray) -> torch.Tensor:
    """What the source's head reads for tokens (T, L): f32 (T, L, D)."""
    config, name = checkpoint.config, "backbone.embedding.weight"
    known, inverse = np.unique(tokens.reshape(-1), return_inverse=True)
    rows = torch.stack([checkpoint.tensor(name, slice(t, t + 1))[0].float() for t in known.tolist()])
    stream = rows[torch.from_numpy(inverse.reshape(-1))].reshape(*tokens.shape, config.d_model)
    read = layer_reader(checkpoint, checkpoint.family)
    for i in range(config.n_layer):
        run_layer(make_block(checkpoint.family, config, read(i)), stream, identity, out=stream)
    return normed(stream, config.norm_eps) * checkpoint.tensor("backbone.norm_f.weight").float()
