"""GPTQ: quantize a weight column by column, and let the columns still open make up for each error.

Frantar et al. 2022 (arXiv 2210.17323), with groups of columns in their natural order and the scale of a group found when
the group is reached, from the weights as compensated so far.  Rows are independent given the Hessian of the inputs,
so a huge weight may come in slabs of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quamba_edge.quant.recipe import Scheme
from quamba_edge.quant.rtn import Codes, encode4, encode8, scale4, scale_row

BLOCK = 128  # columns whose errors are spread at once when a row has a single scale


def inverse_factor(hessian: Tensor, damp: float = 0.01) -> Tensor:
    """Upper Cholesky factor U of the inverse of hessian + damping: H^-1 = U^T U.  hessian (K, K) = X^T X of the inputs.

    Inputs that were never anything but zero get a unit diagonal, so that they neither receive nor spread error.  Where the
    factorization fails in f32, damping grows tenfold at a time.
    """
    dtype = torch.float64 if hessian.shape[0] <= 2048 else torch.float32
    diagonal = hessian.diagonal().to(dtype, copy=True)
    diagonal[diagonal == 0] = 1.0
    while damp <= 10:
        work = hessian.to(dtype, copy=True)
        work.diagonal().copy_(diagonal + damp * diagonal.mean())
        work, info = torch.linalg.cholesky_ex(work)
        if info == 0:
            work = torch.cholesky_inverse(work)
            work, info = torch.linalg.cholesky_ex(work, upper=True)
            if info == 0:
                return work.float()
        damp *= 10
    raise ArithmeticError("the Hessian of a calibration input is not finite")


def repaired(w: Tensor, factor: Tensor, lack: Tensor, share: float) -> Tensor:
    """w (N, K) changed so that, on the inputs v that a quantized model gives it, it says more of what w says of the source's.

    lack (K, K) is the sum over tokens of (source's input - v) v^T.  The weight that does best is w + w lack H^-1; `share` of the
    way there keeps what the calibration text shows of it from being taken for more than it is.  (GPTAQ, Li et al. 2025, arXiv
    2504.02692, and QEP, Arai and Ichikawa 2025, arXiv 2504.09629, aim at the same target by other ways.)
    """
    return w + share * ((w @ lack) @ factor.T) @ factor


def quantize_gptq(
    w: Tensor, factor: Tensor, scheme: Scheme, *, search: bool = True, peak: Tensor | None = None
) -> Codes:
    """Codes of w (N, K), f32, given `inverse_factor` of its inputs' Hessian."""
    w = w.clone()
    rows, cols = w.shape
    step = BLOCK if scheme.bits > 4 else scheme.group
    codes = torch.empty(rows, cols, dtype=torch.int8 if scheme.bits > 4 else torch.uint8)
    scales8 = scale_row(w, scheme.bits, peak, search=search)[:, None] if scheme.bits > 4 else None
    scales4: list[Tensor] = []
    importance = factor.diagonal().square().reciprocal()  # the loss of an error e in column j is e^2 / U[j, j]^2
    for start in range(0, cols, step):
        stop = min(start + step, cols)
        block, u = w[:, start:stop], factor[start:stop, start:stop]
        if scales8 is not None:
            scale = scales8
        else:
            scale = scale4(block, importance[start:stop], search)
            scales4.append(scale)
        errors = torch.empty_like(block)
        for j in range(stop - start):
            column = block[:, j : j + 1]
            if scales8 is not None:
                q = encode8(column, scale, scheme.bits)
                value = q.float() * scale
            else:
                q = encode4(column, scale)
                value = (q.float() - 8) * scale.float()
            codes[:, start + j : start + j + 1] = q
            error = (column - value) / u[j, j]
            errors[:, j : j + 1] = error
            block[:, j + 1 :].addmm_(error, u[j : j + 1, j + 1 :], alpha=-1)
        w[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
    if scales8 is not None:
        return Codes(codes, scales8[:, 0], scheme.bits, scheme.group)
    return Codes(codes, torch.cat(scales4, 1), 4, scheme.group)
