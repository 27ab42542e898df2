"""The ends of the model: embedding and output head, in slabs of rows because a vocabulary may be larger than memory.

Tied models store one matrix E M_D (the rotated embedding).  The final norm's weight w then stays a vector: logits are
E (w * norm(h)), and with h' = h M_D that is (E M_D) rotate(w * unrotate(norm(h'))).  Untied models fold w into the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quamba_edge import layouts
from quamba_edge.calibrate.observe import count, scale_of, searched_scale
from quamba_edge.quant import site
from quamba_edge.quant.gptq import inverse_factor
from quamba_edge.quant.hadamard import rotate, unrotate
from quamba_edge.quant.limits import check_input
from quamba_edge.quant.recipe import Recipe, Scheme

Stored = list[tuple[str, tuple[int, ...], str, np.ndarray]]  # suffix, logical shape, layout, stored array
SLAB = 4096  # rows at a time: 64 MB in f32 at D = 4096


def slabs(checkpoint: Any, name: str) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows f32) of a matrix, slab by slab."""
    for a in range(0, checkpoint.shape(name)[0], SLAB):
        yield a, checkpoint.tensor(name, slice(a, min(a + SLAB, checkpoint.shape(name)[0]))).float()


def store_edge(
    checkpoint: Any,
    name: str,
    scheme: Scheme,
    recipe: Recipe,
    fold: Tensor | None = None,
    guide: Tensor | None = None,
    signed: bool = False,
) -> Stored:
    """The packed tensors of an embedding or head, read and packed slab by slab.

    fold (D): a norm's weight that goes into the columns; guide and signed as in `site.encode`.
    """
    specs = site.specs(checkpoint.shape(name), scheme)
    stored = {part: layouts.empty(*spec) for part, spec in specs.items()}
    for start, w in slabs(checkpoint, name):
        w = w if fold is None else w * fold
        w = rotate(w) if recipe.rotate else w
        for part, rows in site.encode(name, w, scheme, recipe, guide, signed=signed).items():
            layout, _, shape = specs[part]
            layouts.pack_rows(layout, rows.numpy(), stored[part], shape, start)
    return [(part, shape, layout, stored[part]) for part, (layout, _, shape) in specs.items()]


def looked_up(made: Stored, scheme: Scheme, tokens: np.ndarray) -> Tensor:
    """The rows that the quantized embedding gives for tokens (S, L): f32 (S, L, D)."""
    ids, inverse = np.unique(tokens.reshape(-1), return_inverse=True)
    parts = {part: torch.from_numpy(layouts.gather(layout, array, shape, ids)) for part, shape, layout, array in made}
    return site.decode(parts, scheme)[torch.from_numpy(inverse.reshape(tokens.shape))]


def exact_rows(checkpoint: Any, name: str, tokens: np.ndarray, recipe: Recipe) -> Tensor:
    """The rows that the source's embedding gives for tokens (S, L), in the basis of the recipe's streams: f32 (S, L, D)."""
    ids, inverse = np.unique(tokens.reshape(-1), return_inverse=True)
    rows = torch.empty(len(ids), checkpoint.shape(name)[1])
    for row, token in zip(rows, ids.tolist(), strict=True):
        row.copy_(checkpoint.tensor(name, slice(token, token + 1))[0])
    return (rotate(rows) if recipe.rotate else rows)[torch.from_numpy(inverse.reshape(tokens.shape))]


def normed(stream: Tensor, eps: float) -> Tensor:
    """RMSNorm without weight over the last axis."""
    return stream * (stream.square().mean(-1, keepdim=True) + eps).rsqrt()


def head_input(stream: Tensor, config: Any, recipe: Recipe, norm_weight: Tensor) -> Tensor:
    """What enters the head: in the rotated basis, the final norm's weight applied where it is not folded."""
    x = normed(stream, config.norm_eps)
    if not config.tie_embeddings:
        return x
    return rotate(norm_weight * unrotate(x)) if recipe.rotate else norm_weight * x


def observe_head(
    stream: Tensor, config: Any, recipe: Recipe, norm_weight: Tensor, act: int, hessian: bool
) -> tuple[Tensor, Tensor | None]:
    """Static scale (1) of the head's input, and the GPTQ factor (D, D) of its Hessian where asked for."""
    counts = torch.zeros((), dtype=torch.float64)
    peak, moments = torch.zeros(1), torch.zeros(config.d_model, config.d_model) if hessian else None
    for sequence in stream:
        x = head_input(sequence, config, recipe, norm_weight)
        peak = torch.maximum(peak, x.abs().max())
        counts = counts + count(x) if recipe.act_search and act == 8 else counts
        if moments is not None:
            moments += x.T @ x
    check_input("head", float(peak), act)
    scale = searched_scale(peak, counts) if counts.ndim else scale_of(peak)
    return scale, None if moments is None else inverse_factor(moments)


@torch.no_grad()
def negative_log_likelihood(checkpoint: Any, exact: Tensor, tokens: np.ndarray, config: Any, recipe: Recipe) -> float:
    """Mean nats per token of the source model, given its final residual stream exact (T, L, D) for tokens (T, L).

    The first token of a window is not scored; ids beyond the true vocabulary get no probability.
    """
    norm_weight = checkpoint.tensor("backbone.norm_f.weight").float()
    x = normed(unrotate(exact) if recipe.rotate else exact, config.norm_eps) * norm_weight
    x = x[:, :-1].reshape(-1, x.shape[-1])
    target = torch.from_numpy(tokens[:, 1:].reshape(-1).astype(np.int64))
    total = torch.full((len(x),), -torch.inf)
    chosen = torch.full((len(x),), -torch.inf)
    for a, w in slabs(checkpoint, "lm_head.weight"):
        w = w[: max(0, config.true_vocab_size - a)]
        if not len(w):
            break
        logits = x @ w.T
        total = torch.logaddexp(total, logits.logsumexp(-1))
        inside = (target >= a) & (target < a + len(w))
        chosen[inside] = logits[inside, target[inside] - a]
    return float((total - chosen).double().mean())
