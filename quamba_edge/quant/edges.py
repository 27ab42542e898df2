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
from quamba_edge.calibrate.observe import Observer, scale_of
from quamba_edge.quant.gptq import inverse_factor, quantize_gptq
from quamba_edge.quant.hadamard import rotate, unrotate
from quamba_edge.quant.layer import identity, to_half
from quamba_edge.quant.recipe import Recipe, Scheme
from quamba_edge.quant.rtn import Codes, quantize_rtn
from quamba_edge.quant.slabs import by_slabs

Stored = list[tuple[str, tuple[int, ...], str, np.ndarray]]  # suffix, logical shape, layout, stored array
SLAB = 4096  # rows at a time: 64 MB in f32 at D = 4096


def slabs(checkpoint: Any, name: str) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows f32) of a matrix, slab by slab."""
    for a in range(0, checkpoint.shape(name)[0], SLAB):
        yield a, checkpoint.tensor(name, slice(a, min(a + SLAB, checkpoint.shape(name)[0]))).float()


def store_edge(
    checkpoint: Any, name: str, scheme: Scheme, recipe: Recipe, fold: Tensor | None, factor: Tensor | None, signed: bool
) -> Stored:
    """The packed tensors of an embedding or head, read and packed slab by slab."""
    shape = checkpoint.shape(name)
    if scheme.bits == 16:
        plan = {"weight": ("row", "f16", shape)}
    elif scheme.bits == 8:
        plan = {"codes": ("n16k4", "i8", shape), "scales": ("row", "f32", shape[:1])}
    else:
        plan = {"codes": ("n16k8", "u4", shape), "scales": ("n16", "f16", (shape[0], -(-shape[1] // scheme.group)))}
    stored = {part: layouts.empty(*spec) for part, spec in plan.items()}
    for start, w in slabs(checkpoint, name):
        w = w if fold is None else w * fold
        w = rotate(w) if recipe.rotate else w
        if scheme.bits == 16:
            rows = {"weight": to_half(w, name)}
        else:
            if factor is not None:
                made = by_slabs(lambda rows: quantize_gptq(rows, factor, scheme, search=recipe.clip_search), w)
            else:
                made = by_slabs(lambda rows: quantize_rtn(rows, scheme, search=recipe.clip_search, signed=signed), w)
            rows = {"codes": made.codes, "scales": made.scales}
        for part, values in rows.items():
            layouts.pack_rows(plan[part][0], values.numpy(), stored[part], plan[part][2], start)
    return [(part, spec[2], spec[0], stored[part]) for part, spec in plan.items()]


def looked_up(made: Stored, scheme: Scheme, tokens: np.ndarray) -> np.ndarray:
    """The rows that the quantized embedding gives for tokens (S, L): f32 (S, L, D)."""
    parts = {part: (layout, stored, shape) for part, shape, layout, stored in made}
    ids, inverse = np.unique(tokens.reshape(-1), return_inverse=True)
    if scheme.bits == 16:
        rows = np.asarray(parts["weight"][1][ids], np.float32)
    else:
        codes = torch.from_numpy(layouts.gather(*parts["codes"], ids))
        scales = torch.from_numpy(layouts.gather(*parts["scales"], ids))
        rows = Codes(codes, scales, scheme.bits, scheme.group).dequantize().numpy()
    return rows[inverse].reshape(*tokens.shape, -1)


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
    stream: Tensor, config: Any, recipe: Recipe, norm_weight: Tensor, hessian: bool
) -> tuple[Tensor, Tensor | None]:
    """Static scale of the head's input, and the GPTQ factor of its Hessian where asked for."""
    observer = Observer(identity, {"in_proj": "gptq"} if hessian else None)
    for sequence in stream:
        observer("in_proj", head_input(sequence[None], config, recipe, norm_weight))
    return scale_of(observer.peak["in_proj"]), inverse_factor(observer.moments["in_proj"]) if hessian else None


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
    chosen = torch.zeros(len(x))
    for a, w in slabs(checkpoint, "lm_head.weight"):
        w = w[: max(0, config.true_vocab_size - a)]
        if not len(w):
            break
        logits = x @ w.T
        total = torch.logaddexp(total, logits.logsumexp(-1))
        inside = (target >= a) & (target < a + len(w))
        chosen[inside] = logits[inside, target[inside] - a]
    return float((total - chosen).double().mean())
