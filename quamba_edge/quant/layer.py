"""Quantize one layer: in_proj first, then run it to see the other activations, choose their scales and codes, and run it
again as it will run on the board.

Memory is one layer's weights in f32 (in_proj's twice while the source runs beside), the Hessians that are still to be used, the
streams, and what BATCH_TOKENS become inside the layer.  Weights exist once: the block that runs shares them, and each is replaced by what its codes stand for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quamba_edge.calibrate.observe import STATE_REACH, FakeQuant, Lack, Observer, scale_of, state_scales
from quamba_edge.errors import BadCheckpoint, BadRecipe
from quamba_edge.quant import cluster, site
from quamba_edge.quant.gptq import inverse_factor, repaired
from quamba_edge.quant.hadamard import rotate
from quamba_edge.quant.limits import check_observed, check_state
from quamba_edge.quant.recipe import Recipe, Scheme
from quamba_edge.quant.refine import damped
from quamba_edge.quant.running import make_block, observe_in_proj, observe_rest, run_layer
from quamba_edge.quant.transform import Weights, permute, rotate_layer

REPAIRED = ("in_proj", "out_proj")  # they make up for earlier layers; the others read within the layer
UNNORMED = {"mamba": {"dt_proj", "out_proj"}, "mamba2": set()}  # their inputs have no norm before them
SITES = {"mamba": ("in_proj", "x_proj", "dt_proj", "out_proj"), "mamba2": ("in_proj", "out_proj")}

Named = tuple[str, str, np.ndarray]  # name without the "layers.{i}." prefix, layout, logical array


@dataclass
class QuantizedLayer:
    """A layer's tensors in bundle order, and its sites' records for the manifest, both without the "layers.{i}." prefix."""

    tensors: list[Named]
    sites: dict[str, dict[str, Any]]


@torch.no_grad()
def quantize_layer(
    i: int,
    weights: Weights,
    family: str,
    config: Any,
    recipe: Recipe,
    stream: Tensor,
    exact: Tensor,
    source: Tensor | None = None,
) -> QuantizedLayer:
    """Quantize a layer (norms folded, not yet rotated).  `weights` is used up; the streams become the layer's outputs.

    stream (S, L, D): the residual stream of the quantized model so far; exact (T, L, D): that of the source, on held-out text;
    source (S, L, D): that of the source on the calibration text, if weights are to make up for what it and `stream` differ in.
    """
    schemes = layer_schemes(recipe, i, family)
    grouping = None
    if recipe.x_grain == "group" and ssm_int8(recipe, schemes):
        grouping = find_grouping(rotate_layer(weights) if recipe.rotate else weights, family, config, stream)
        weights.update(permute(weights, grouping, config))
    if recipe.rotate:
        weights.update(rotate_layer(weights))
    block = make_block(family, config, weights)
    rotate_out = rotate if recipe.rotate else identity
    wanted = {name: scheme.method for name, scheme in schemes.items() if scheme.bits < 16}
    aims = [] if source is None else [name for name in REPAIRED if repairs(recipe, schemes[name])]
    run_layer(block, exact, lambda tap, v: rotate_out(v) if tap == "out_proj" else v, out=exact)
    spread = {n for n, scheme in schemes.items() if scheme.act == 8 and recipe.act_search}
    unnormed = spread & UNNORMED[family]
    methods = {"in_proj": wanted.pop("in_proj")} if "in_proj" in wanted else {}
    first = Lack(Observer(rotate_out, methods, spread=spread - unnormed), aims)
    observe_in_proj(block, stream, source, first)
    check_observed(i, first.observer.peak, {"in_proj": schemes["in_proj"]})
    exact_block = None
    if source is not None:
        kept = {"mixer.in_proj.weight": weights["mixer.in_proj.weight"].clone()}
        exact_block = make_block(family, config, weights | kept)
    made, scales = QuantizedLayer([], {}), activation_scales(first.observer, schemes)

    def finish(name: str, seen: Lack) -> None:
        w, scheme = weights[f"mixer.{name}.weight"], schemes[name]
        made.sites[name] = site.record(tuple(w.shape), scheme)
        columns = scales.get("x") if name == "x_proj" else None
        moments, lack = seen.observer.moments.pop(name, None), seen.lack.pop(name, None)
        made.tensors += quantize_site(i, name, w, scheme, recipe, moments, columns, lack)
        if scheme.act == 8:
            in_scale = torch.ones(1) if name == "x_proj" else scales[name]
            made.tensors.append((f"{name}.in_scale", "row", in_scale.numpy()))

    finish("in_proj", first)
    observer = Observer(rotate_out, wanted, recipe.percentile, spread - unnormed, unnormed)
    rest = Lack(observer, [name for name in aims if name != "in_proj"])
    observe_rest(block, exact_block, stream, source, rest, scales)
    check_observed(i, observer.peak, {n: s for n, s in schemes.items() if n != "in_proj"})
    check_state(i, observer.peak["state"])
    if not torch.isfinite(exact).all():
        raise BadCheckpoint(f"layers.{i}: what it makes of the held-out text is not finite: its weights are too large")
    scales |= activation_scales(observer, schemes) | ssm_scales(observer.peak, schemes, recipe, config, grouping)
    for name in schemes:
        if name != "in_proj":
            finish(name, rest)
    made.tensors += ssm_tensors(weights, family, config, observer, scales)
    run_layer(block, stream, FakeQuant(rotate_out, scales), out=stream)
    return made


def identity(x: Tensor) -> Tensor:
    """What stands for the rotation of out_proj's input in recipes that do not rotate."""
    return x


def layer_schemes(recipe: Recipe, i: int, family: str) -> dict[str, Scheme]:
    """The scheme of each site.  x_proj reads what the convolution writes, so its act is that of the SSM input."""
    schemes = {name: recipe.scheme(f"layers.{i}.{name}") for name in SITES[family]}
    if "x_proj" in schemes:
        act = 8 if ssm_int8(recipe, schemes) else 16
        if act == 8 and schemes["x_proj"].bits == 16:
            raise BadRecipe(
                f'layers.{i}.x_proj has 16 bits but reads the int8 input of the SSM: give it bits 8 or 4, or the recipe "ssm_act": 16'
            )
        schemes["x_proj"] = replace(schemes["x_proj"], act=act)
    return schemes


def check_recipe(recipe: Recipe, family: str, config: Any) -> None:
    """BadRecipe where a recipe does not fit the model: to be told before hours of work, not amid them."""
    for i in range(config.n_layer):
        if ssm_int8(recipe, layer_schemes(recipe, i, family)) and recipe.x_grain == "group" and family != "mamba2":
            raise BadRecipe('x_grain "group" sorts Mamba2\'s heads; a Mamba1 recipe takes "channel" or "tensor"')
    head, embedding = recipe.scheme("head"), recipe.scheme("embedding")
    if config.tie_embeddings and (head.bits != embedding.bits or (head.bits == 4 and head.group != embedding.group)):
        raise BadRecipe(
            f"recipe {recipe.name!r}: head has {head.bits} bits in groups of {head.group}, embedding {embedding.bits} in groups of "
            f"{embedding.group}, but this model ties them to one matrix: give both the same"
        )
    names = sorted({name for sites in SITES.values() for name in sites})  # a recipe may serve both families
    known = ["embedding", "head", *(f"layers.{i}.{name}" for i in range(config.n_layer) for name in names)]
    for pattern in recipe.sites:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise BadRecipe(
                f"recipe {recipe.name!r}: no site fits {pattern!r}: expected embedding, head, or layers.N.SITE with N below "
                f"{config.n_layer} and SITE one of {', '.join(SITES[family])}, * for anything"
            )


def ssm_int8(recipe: Recipe, schemes: dict[str, Scheme]) -> bool:
    """Whether this layer's SSM inputs are int8."""
    return recipe.ssm_act == 8 and schemes["in_proj"].act == 8


def repairs(recipe: Recipe, scheme: Scheme) -> bool:
    """Whether a site of that scheme makes up for the rounding of earlier layers."""
    return recipe.repair > 0 and scheme.bits == 4 and scheme.method == "gptq"


def find_grouping(weights: Weights, family: str, config: Any, stream: Tensor) -> cluster.Grouping:
    """Sort-and-cluster the layer's heads and channels by the largest |x| that the stream gives them."""
    assert family == "mamba2", "check_recipe lets no other through"
    observer = Observer(identity)
    run_layer(make_block(family, config, weights), stream, observer)
    magnitude = observer.peak["x"].view(-1, config.headdim).numpy()  # (H, P)
    return cluster.sort_and_cluster(magnitude, config.ngroups)


def activation_scales(seen: Observer, schemes: dict[str, Scheme]) -> dict[str, Tensor]:
    """Static int8 scales (1) of the inputs of those linears that were seen."""
    inputs = [n for n in ("in_proj", "out_proj", "dt_proj") if n in schemes and n in seen.peak and schemes[n].act == 8]
    return {n: seen.input_scale(n) for n in inputs}


def ssm_scales(
    peak: dict[str, Tensor], schemes: dict[str, Scheme], recipe: Recipe, config: Any, grouping: cluster.Grouping | None
) -> dict[str, Tensor]:
    """Static int8 scales of the SSM's inputs by tap: x (E), B and C (g*N); none where they stay float."""
    scales: dict[str, Tensor] = {}
    if not ssm_int8(recipe, schemes):
        return scales
    x = peak["x"]
    if recipe.x_grain == "tensor":
        x = x.max().expand_as(x)
    elif grouping is not None:
        x = torch.from_numpy(cluster.group_max(x.numpy(), grouping.scales_of))
    scales["x"] = scale_of(x)
    if "x_proj" not in schemes:  # Mamba2; Mamba1's B and C are 2 N values and stay f32
        for name in ("B", "C"):
            groups = peak[name].view(config.ngroups if recipe.bc_grain == "group" else 1, -1)
            whole = groups.amax(1, keepdim=True).expand_as(groups).flatten()
            scales[name] = scale_of(peak[name] if recipe.bc_grain == "channel" else whole)
    return scales


def quantize_site(
    i: int,
    name: str,
    w: Tensor,
    scheme: Scheme,
    recipe: Recipe,
    guide: Tensor | None,
    columns: Tensor | None,
    lack: Tensor | None = None,
) -> list[Named]:
    """The tensors of a linear site of layer i; its weight w (N, K) becomes what they stand for.

    guide: the site's moments, as `Observer` has them, are used up: a Hessian is as large as a weight.
    columns (K): scales of inputs that arrive as int8 codes; they go into the columns before these are quantized.
    lack: `Lack.lack` of the site, or None.
    """
    hessian = None
    if columns is not None:
        w.mul_(columns)
        if guide is not None:
            guide = guide / (columns.square() if guide.ndim == 1 else columns[:, None] * columns)
    if guide is not None and scheme.method == "gptq":
        hessian, guide = guide, inverse_factor(guide)
        hessian = damped(hessian) if recipe.refine and scheme.bits == 4 else None
        if lack is not None:
            assert columns is None, "x_proj reads within the layer"
            w.copy_(repaired(w, guide, lack, recipe.repair))
    peak = torch.maximum(w.max(), -w.min()) if recipe.weight_grain == "tensor" else None
    parts = site.encode(f"layers.{i}.{name}", w, scheme, recipe, guide, hessian=hessian, peak=peak)
    site.decode(parts, scheme, out=w)
    if columns is not None:
        w.div_(columns)
    specs = site.specs(tuple(w.shape), scheme)
    return [(f"{name}.{part}", specs[part][0], value.numpy()) for part, value in parts.items()]


def ssm_tensors(
    weights: Weights, family: str, config: Any, observer: Observer, scales: dict[str, Tensor]
) -> list[Named]:
    """Convolution and SSM parameters, f32, and their static scales."""
    groups = config.ngroups if family == "mamba2" else 1
    peak = observer.peak["state"].reshape(groups, -1, config.d_state)
    rows, cols = state_scales(peak, observer.states, STATE_REACH[family])
    vectors = {
        "conv.weight": weights["mixer.conv1d.weight"].squeeze(1),
        "conv.bias": weights["mixer.conv1d.bias"],
        "ssm.A": -weights["mixer.A_log"].exp(),
        "ssm.D": weights["mixer.D"],
        "ssm.dt_bias": weights["mixer.dt_bias" if family == "mamba2" else "mixer.dt_proj.bias"],
        "ssm.state_rows": rows,
        "ssm.state_cols": cols,
    }
    if "x" in scales:
        vectors["conv.out_scale"] = torch.cat([scales[n] for n in ("x", "B", "C") if n in scales])
    return [(name, "row", v.float().contiguous().numpy()) for name, v in vectors.items()]
