"""The rotation of quamba_edge/rotation.py for torch tensors: three small matrix products instead of n by n.

M_n = base (b by b) x Sylvester (p q by p q), and a Sylvester matrix is itself a product of two smaller ones, so a vector seen
as a (b, p, q) block is multiplied along each axis.  One home for what M_n is: quamba_edge.rotation.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from quamba_edge import rotation

SLAB = 1 << 20  # elements at a time: a product makes copies of what it transforms, 4 MB each for a slab


@lru_cache(maxsize=8)
def _factors(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    base, power = rotation.base_and_power(n)
    low = 1 << (power.bit_length() // 2)
    parts = rotation.base_matrix(base), rotation.sylvester(power // low), rotation.sylvester(low)
    scale = (base * power) ** -0.5  # a size that no base covers is block-diagonal: n / (base * power) blocks
    return (
        torch.tensor(parts[0] * scale, dtype=dtype),
        torch.tensor(parts[1], dtype=dtype),
        torch.tensor(parts[2], dtype=dtype),
    )


def rotate(x: Tensor) -> Tensor:
    """x M over the last axis, orthonormal; any float dtype."""
    a, b, c = _factors(x.shape[-1], x.dtype)
    return _transform(x, a, b, c)


def unrotate(x: Tensor) -> Tensor:
    """x M^T: undoes rotate.  The 20 and 28 bases are not symmetric, so rotating twice is not the identity."""
    a, b, c = _factors(x.shape[-1], x.dtype)
    return _transform(x, a.T, b, c)  # Sylvester matrices are symmetric


def _transform(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """x as blocks (p, q, r), multiplied by a, b and c along these axes; a slab of rows at a time."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch.empty_like(rows)
    step = max(1, SLAB // max(1, x.shape[-1]))
    for start in range(0, len(rows), step):
        block = rows[start : start + step].reshape(-1, len(a), len(b), len(c)) @ c
        block = torch.einsum("npqr,qs->npsr", block, b)
        block = torch.einsum("npqr,ps->nsqr", block, a)
        out[start : start + step] = block.reshape(-1, x.shape[-1])
    return out.reshape(x.shape)
