"""Rewrite one layer's weights so that its function stays and its numbers quantize better.

Order matters: fold the norms, then permute, then rotate (Quamba2, section 4).  Each step is exact before quantization:

  fold     RMSNorm's weight goes into the columns that read the normalized vector; the norm's own weight becomes one.
  permute  heads within an SSD group and channels within a head move together in everything that touches them.
  rotate   the residual stream is h M_D, so in_proj's rows and out_proj's outputs are multiplied by M_D; out_proj's
           columns by M_E, which the running model undoes by rotating out_proj's input (the one online transform).

Weights are dictionaries of f32 tensors by the checkpoint's leaf names: "norm.weight", "mixer.in_proj.weight", ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quamba_edge.quant.cluster import Grouping
from quamba_edge.quant.hadamard import rotate

Weights = dict[str, Tensor]
COLUMNS = 1024  # of out_proj, transposed and rotated at a time: 16 MB at 8B


def fold_norms(weights: Weights, family: str) -> Weights:
    """The pre-norm's weight into in_proj; the gated norm's (Mamba2) into out_proj."""
    out = dict(weights)
    out["mixer.in_proj.weight"] = weights["mixer.in_proj.weight"] * weights["norm.weight"]
    out["norm.weight"] = torch.ones_like(weights["norm.weight"])
    if family == "mamba2":
        out["mixer.out_proj.weight"] = weights["mixer.out_proj.weight"] * weights["mixer.norm.weight"]
        out["mixer.norm.weight"] = torch.ones_like(weights["mixer.norm.weight"])
    return out


def permute(weights: Weights, grouping: Grouping, config: Any) -> Weights:
    """Reorder a Mamba2 layer's heads and channels (Quamba2, section 4.3); call after fold_norms, before rotating."""
    heads, channels = torch.from_numpy(grouping.heads), torch.from_numpy(grouping.channels)
    inner, n_heads = config.d_inner, config.d_inner // config.headdim
    shared = torch.arange(2 * config.ngroups * config.d_state)  # B and C stay
    conv = torch.cat([channels, inner + shared])
    rows = torch.cat([channels, inner + conv, inner + inner + len(shared) + heads])  # z, [x B C], dt
    out = dict(weights)
    out["mixer.in_proj.weight"] = weights["mixer.in_proj.weight"][rows]
    for name in ("mixer.conv1d.weight", "mixer.conv1d.bias"):
        out[name] = weights[name][conv]
    for name in ("mixer.A_log", "mixer.D", "mixer.dt_bias"):
        out[name] = weights[name][heads]
    out["mixer.norm.weight"] = weights["mixer.norm.weight"][channels]
    out["mixer.out_proj.weight"] = weights["mixer.out_proj.weight"][:, channels]
    assert len(heads) == n_heads and len(channels) == inner
    return out


def rotate_layer(weights: Weights) -> Weights:
    """Into the rotated residual basis; out_proj then expects its input rotated."""
    out = dict(weights)
    out["mixer.in_proj.weight"] = rotate(weights["mixer.in_proj.weight"])
    outward = rotate(weights["mixer.out_proj.weight"])  # columns: the online transform's basis
    for columns in outward.split(COLUMNS, 1):  # outputs: the residual's basis
        columns.copy_(rotate(columns.T.contiguous()).T)
    out["mixer.out_proj.weight"] = outward
    return out


def layer_reader(checkpoint: Any, family: str) -> Callable[[int], Weights]:
    """A function that reads layer i of a checkpoint, f32, with its norms folded."""
    leaves: dict[int, list[str]] = {}
    for name in checkpoint.names():
        parts = name.split(".")
        if parts[1] == "layers":
            leaves.setdefault(int(parts[2]), []).append(name)

    def read(i: int) -> Weights:
        prefix = f"backbone.layers.{i}."
        return fold_norms({n[len(prefix) :]: checkpoint.tensor(n).float() for n in leaves[i]}, family)

    return read
