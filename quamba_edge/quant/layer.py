"""Quantize one layer: run it once to see its activations, choose scales and codes, run it again as it will run on the board.

Memory is one layer's weights in f32, its Hessians, and the calibration stream (S, L, D).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quamba_edge import models
from quamba_edge.calibrate.observe import FakeQuant, Observer, scale_of, state_scales
from quamba_edge.errors import BadRecipe
from quamba_edge.quant import cluster
from quamba_edge.quant.gptq import inverse_factor, quantize_gptq
from quamba_edge.quant.hadamard import rotate
from quamba_edge.quant.recipe import Recipe, Scheme
from quamba_edge.quant.rtn import Codes, quantize_rtn
from quamba_edge.quant.slabs import by_slabs
from quamba_edge.quant.transform import Weights, permute, rotate_layer

SITES = {"mamba": ("in_proj", "x_proj", "dt_proj", "out_proj"), "mamba2": ("in_proj", "out_proj")}
BATCH_TOKENS = 4096  # tokens that run through a layer at once; at 8B their in_proj output is 300 MB


@dataclass
class QuantizedLayer:
    """`tensors`: logical arrays by bundle name without the "layers.{i}." prefix, with their layouts; `sites` for the manifest."""

    tensors: list[tuple[str, str, np.ndarray]]
    sites: dict[str, dict[str, Any]]


def identity(x: Tensor) -> Tensor:
    return x


def layer_schemes(recipe: Recipe, i: int, family: str) -> dict[str, Scheme]:
    """The scheme of each site.  x_proj reads what the convolution writes, so its act is that of the SSM input."""
    schemes = {s: recipe.scheme(f"layers.{i}.{s}") for s in SITES[family]}
    if family == "mamba":
        act = 8 if _ssm_int8(recipe, schemes) else 16
        schemes["x_proj"] = replace(schemes["x_proj"], act=act)
    return schemes


def _ssm_int8(recipe: Recipe, schemes: dict[str, Scheme]) -> bool:
    return recipe.ssm_act == 8 and schemes["in_proj"].act == 8


def run_layer(block: Any, stream: Tensor, tap: Callable[[str, Tensor], Tensor], out: Tensor | None) -> None:
    """stream (S, L, D) through the block, a few sequences at a time; results go to `out` (which may be stream) if given."""
    rows = max(1, BATCH_TOKENS // stream.shape[1])
    for a in range(0, len(stream), rows):
        result, _ = block(stream[a : a + rows], None, tap)
        if out is not None:
            out[a : a + rows] = result


def make_block(family: str, config: Any, weights: Weights) -> Any:
    """The reference block with these weights, f32."""
    block = models.find(family, "reference").Block(config)
    block.load_state_dict(weights)
    return block.float().eval()


def quantize_weight(w: Tensor, scheme: Scheme, moments: Tensor, recipe: Recipe) -> Codes:
    """One site's codes by the scheme's method, given its inputs' second moments: (K, K) for GPTQ, (K) for round to nearest."""
    search = recipe.clip_search
    peak = w.abs().max() if recipe.weight_grain == "tensor" else None
    if scheme.method == "gptq":
        factor = inverse_factor(moments)
        return by_slabs(lambda rows: quantize_gptq(rows, factor, scheme, search=search, peak=peak), w)
    return by_slabs(lambda rows: quantize_rtn(rows, scheme, moments, search=search, peak=peak), w)


def activation_scales(
    observer: Observer, schemes: dict[str, Scheme], recipe: Recipe, config: Any, grouping: Any
) -> dict[str, Tensor]:
    """Static int8 scales by tap name; a tap that stays float has none."""
    peak, scales = observer.peak, {}
    for site in ("in_proj", "out_proj", "dt_proj"):
        if site in schemes and schemes[site].act == 8:
            scales[site] = scale_of(peak[site])
    if not _ssm_int8(recipe, schemes):
        return scales
    x = peak["x"]
    if recipe.x_grain == "tensor":
        x = x.max().expand_as(x)
    elif recipe.x_grain == "group":
        x = torch.from_numpy(cluster.group_max(x.numpy(), grouping.scales_of))
    scales["x"] = scale_of(x)
    if "x_proj" not in schemes:  # Mamba2; Mamba1's B and C are 2 N values and stay f32
        for name in ("B", "C"):
            groups = peak[name].view(config.ngroups if recipe.bc_grain == "group" else 1, -1)
            scales[name] = scale_of(groups.amax(1, keepdim=True).expand_as(groups).flatten())
    return scales


def find_grouping(weights: Weights, family: str, config: Any, stream: Tensor) -> cluster.Grouping:
    """Sort-and-cluster the layer's heads and channels by the largest |x| that the stream gives them."""
    if family != "mamba2":
        raise BadRecipe('x_grain "group" sorts Mamba2\'s heads; a Mamba1 recipe takes "channel" or "tensor"')
    observer = Observer(identity)
    run_layer(make_block(family, config, weights), stream, observer, None)
    magnitude = observer.peak["x"].view(-1, config.headdim).numpy()
    return cluster.sort_and_cluster(magnitude, config.ngroups)


def store_linear(
    site: str, w: Tensor, scheme: Scheme, moments: Tensor | None, recipe: Recipe
) -> tuple[list[tuple[str, str, np.ndarray]], Tensor]:
    """A linear site's tensors (name, layout, logical array), and the weight f32 (N, K) that they stand for."""
    if scheme.bits == 16:
        half = to_half(w, site)
        return [(f"{site}.weight", "row", half.numpy())], half.float()
    assert moments is not None
    made = quantize_weight(w, scheme, moments, recipe)
    layouts = ("n16k8", "n16") if scheme.bits == 4 else ("n16k4", "row")
    arrays = [(f"{site}.codes", layouts[0], made.codes.numpy()), (f"{site}.scales", layouts[1], made.scales.numpy())]
    return arrays, made.dequantize()


def to_half(w: Tensor, site: str) -> Tensor:
    """w in f16, or BadRecipe where that overflows."""
    half = w.half()
    if not torch.isfinite(half).all():
        raise BadRecipe(f"{site} has weights beyond the range of f16 (65504): give it a scheme of 8 or 4 bits")
    return half


def site_record(shape: tuple[int, ...], scheme: Scheme) -> dict[str, Any]:
    """What the manifest says of a site of that shape (N, K)."""
    return {
        "N": shape[0],
        "K": shape[1],
        "bits": scheme.bits,
        "group": scheme.group,
        "act": scheme.act,
        "method": scheme.method,
    }


def ssm_tensors(
    weights: Weights, family: str, config: Any, state_peak: Tensor, scales: dict[str, Tensor]
) -> list[tuple[str, str, np.ndarray]]:
    """Convolution and SSM parameters, f32, and their static scales."""
    groups = config.ngroups if family == "mamba2" else 1
    rows, cols = state_scales(state_peak.reshape(groups, -1, config.d_state))
    bias = weights["mixer.dt_bias"] if family == "mamba2" else weights["mixer.dt_proj.bias"]
    vectors = {
        "conv.weight": weights["mixer.conv1d.weight"].squeeze(1),
        "conv.bias": weights["mixer.conv1d.bias"],
        "ssm.A": -weights["mixer.A_log"].exp(),
        "ssm.D": weights["mixer.D"],
        "ssm.dt_bias": bias,
        "ssm.state_rows": rows,
        "ssm.state_cols": cols,
    }
    if "x" in scales:
        vectors["conv.out_scale"] = torch.cat([scales[n] for n in ("x", "B", "C") if n in scales])
    return [(name, "row", v.float().contiguous().numpy()) for name, v in vectors.items()]


@torch.no_grad()
def quantize_layer(
    i: int, weights: Weights, family: str, config: Any, recipe: Recipe, stream: Tensor, exact: Tensor
) -> QuantizedLayer:
    """Quantize a layer (weights folded, not yet rotated); `stream` and `exact` are replaced by the layer's outputs.

    stream (S, L, D): the residual stream of the quantized model so far; exact (T, L, D): that of the source, on held-out text.
    """
    schemes = layer_schemes(recipe, i, family)
    grouping = None
    if recipe.x_grain == "group" and _ssm_int8(recipe, schemes):
        grouping = find_grouping(rotate_layer(weights) if recipe.rotate else weights, family, config, stream)
        weights = permute(weights, grouping, config)
    rotate_out = rotate if recipe.rotate else identity
    if recipe.rotate:
        weights = rotate_layer(weights)
    block = make_block(family, config, weights)
    wanted = {s: scheme.method for s, scheme in schemes.items() if scheme.bits < 16}
    observer = Observer(rotate_out, wanted, recipe.percentile)
    run_layer(block, stream, observer, None)
    run_layer(block, exact, lambda name, v: rotate_out(v) if name == "out_proj" else v, exact)
    scales = activation_scales(observer, schemes, recipe, config, grouping)

    tensors: list[tuple[str, str, np.ndarray]] = []
    sites: dict[str, dict[str, Any]] = {}
    for site, scheme in schemes.items():
        name = f"mixer.{site}.weight"
        w, moments = weights[name], observer.moments.get(site)
        columns = scales["x"] if site == "x_proj" and "x" in scales else None
        if columns is not None:  # x arrives as codes: their scales go into the columns before these are quantized
            w = w * columns
            if moments is not None:
                moments = moments / (columns.square() if moments.ndim == 1 else columns[:, None] * columns[None, :])
        made, value = store_linear(site, w, scheme, moments, recipe)
        block.get_parameter(name).copy_(value if columns is None else value / columns)
        tensors += made
        if scheme.act == 8:
            scale = torch.ones(1) if site == "x_proj" else scales[site]
            tensors.append((f"{site}.in_scale", "row", scale.numpy()))
        sites[site] = site_record(tuple(w.shape), scheme)
    tensors += ssm_tensors(weights, family, config, observer.peak["state"], scales)
    run_layer(block, stream, FakeQuant(rotate_out, scales), stream)
    return QuantizedLayer(tensors, sites)
