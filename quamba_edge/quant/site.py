"""A linear site in its stored form: which tensors its weight (N, K) becomes, and what these stand for.

docs/architecture.md, section 2, has the table.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quamba_edge.errors import BadRecipe
from quamba_edge.quant.gptq import quantize_gptq
from quamba_edge.quant.recipe import Recipe, Scheme
from quamba_edge.quant.refine import refine
from quamba_edge.quant.rtn import Codes, quantize_rtn
from quamba_edge.quant.slabs import by_slabs

Spec = tuple[str, str, tuple[int, ...]]  # layout, logical dtype, logical shape


def record(shape: tuple[int, ...], scheme: Scheme) -> dict[str, Any]:
    """What the manifest says of a site of that shape (N, K)."""
    N, K = shape
    return {"N": N, "K": K, "bits": scheme.bits, "group": scheme.group, "act": scheme.act, "method": scheme.method}


def specs(shape: tuple[int, ...], scheme: Scheme) -> dict[str, Spec]:
    """The tensors of a site of that shape (N, K), by the last word of their names."""
    N, K = shape
    if scheme.bits == 16:
        return {"weight": ("row", "f16", (N, K))}
    if scheme.bits in (6, 8):
        return {"codes": ("n16k4" if scheme.bits == 8 else "n16k4x6", "i8", (N, K)), "scales": ("row", "f32", (N,))}
    return {"codes": ("n16k8", "u4", (N, K)), "scales": ("n16", "f16", (N, -(-K // scheme.group)))}


def encode(
    name: str,
    w: Tensor,
    scheme: Scheme,
    recipe: Recipe,
    guide: Tensor | None = None,
    *,
    hessian: Tensor | None = None,
    peak: Tensor | None = None,
    signed: bool = False,
) -> dict[str, Tensor]:
    """The tensors of `specs`, of w f32: the whole matrix or some of its rows.

    guide: what the method wants to know of the inputs: "gptq" the `inverse_factor` of their Hessian (K, K), "rtn" their
    mean squares (K) up to a factor, or None.  hessian (K, K): `damped`, for the recipe's `refine`; None: it is left out.  peak and signed as in `quantize_rtn`; name is for the error message.
    """
    if scheme.bits == 16:
        return {"weight": _to_half(name, w)}
    search = recipe.clip_search
    if scheme.method == "gptq":
        assert guide is not None, f"{name}: GPTQ without its inputs' Hessian"

        def codes(rows: Tensor) -> Codes:
            made = quantize_gptq(rows, guide, scheme, search=search, peak=peak)
            return made if hessian is None or scheme.bits != 4 else refine(rows, made, hessian, recipe.refine)

        made = by_slabs(codes, w)
    else:
        made = by_slabs(lambda rows: quantize_rtn(rows, scheme, guide, search=search, peak=peak, signed=signed), w)
    if not torch.isfinite(made.scales).all():
        raise BadRecipe(f"{name} has weights too large for 4 bits, whose scales are f16: give it a scheme of 8 bits")
    return {"codes": made.codes, "scales": made.scales}


def decode(parts: dict[str, Tensor], scheme: Scheme, out: Tensor | None = None) -> Tensor:
    """The weight f32 that the tensors of `encode` stand for; in `out` where that is given."""
    if scheme.bits == 16:
        return parts["weight"].float() if out is None else out.copy_(parts["weight"])
    return Codes(parts["codes"], parts["scales"], scheme.bits, scheme.group).dequantize(out)


def _to_half(name: str, w: Tensor) -> Tensor:
    half = w.half()
    if not torch.isfinite(half).all():
        raise BadRecipe(f"{name} has weights beyond the range of f16 (65504): give it a scheme of 8 or 4 bits")
    return half
