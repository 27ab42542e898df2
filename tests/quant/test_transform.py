"""Each rewriting of the weights leaves the logits as they were, before anything is quantized."""

import numpy as np
import pytest
import torch

from quamba_edge import models
from quamba_edge.checkpoint import open_checkpoint
from quamba_edge.quant import edges
from quamba_edge.quant.cluster import sort_and_cluster
from quamba_edge.quant.hadamard import rotate
from quamba_edge.quant.recipe import shipped
from quamba_edge.quant.transform import fold_norms, permute, rotate_layer
from tests.tiny import write_checkpoint

IDS = torch.randint(0, 257, (2, 70), generator=torch.Generator().manual_seed(0))


def source(folder, family, **sizes):
    """A checkpoint whose norm weights are far from one, and its logits in float64."""
    checkpoint = open_checkpoint(write_checkpoint(folder, family, **sizes))
    lm = models.find(family, "reference").LM.from_checkpoint(checkpoint, torch.float64)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in lm.named_parameters():
            if "norm" in name:
                weight.copy_(0.2 + 2 * torch.rand(weight.shape, generator=generator, dtype=torch.float64))
    return checkpoint.config, lm, lm(IDS)[0]


def layer_weights(lm, i):
    return {n: p.clone() for n, p in lm.backbone.layers[i].named_parameters()}


def run(config, family, lm, rewritten, rotated):
    """Logits of the rewritten layers between the exact ends, in the rotated basis if so."""
    recipe = shipped("w4a8" if rotated else "w16a16")
    embedding = lm.backbone.embedding.weight
    stream = (rotate(embedding) if rotated else embedding)[IDS]
    for weights in rewritten:
        block = models.find(family, "reference").Block(config).double()
        block.load_state_dict(weights)
        stream, _ = block(stream, None, lambda n, v: rotate(v) if rotated and n == "out_proj" else v)
    x = edges.head_input(stream, config, recipe, lm.backbone.norm_f.weight)
    head = lm.lm_head.weight if config.tie_embeddings else lm.lm_head.weight * lm.backbone.norm_f.weight
    return x @ (rotate(head) if rotated else head).T


def near(a, b):
    return float((a - b).abs().max() / b.abs().max()) < 1e-10


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rotated", [False, True])
def test_folding_and_rotation_are_exact(tmp_path, family, tied, rotated):
    config, lm, logits = source(tmp_path, family, tied=tied)
    layers = [fold_norms(layer_weights(lm, i), family) for i in range(config.n_layer)]
    assert all((w["norm.weight"] == 1).all() for w in layers)
    layers = [rotate_layer(w) for w in layers] if rotated else layers
    assert near(run(config, family, lm, layers, rotated), logits)


@pytest.mark.parametrize("d_model", [48, 80, 56, 72])  # bases 12, 20, 28, and one that no base covers
def test_rotation_is_exact_for_every_base(tmp_path, d_model):
    config, lm, logits = source(tmp_path, "mamba2", d_model=d_model, headdim=8)
    layers = [rotate_layer(fold_norms(layer_weights(lm, i), "mamba2")) for i in range(config.n_layer)]
    assert near(run(config, "mamba2", lm, layers, True), logits)


@pytest.mark.parametrize("ngroups", [1, 2, 4])
@pytest.mark.parametrize("rotated", [False, True])
def test_sorting_heads_and_channels_is_exact(tmp_path, ngroups, rotated):
    config, lm, logits = source(tmp_path, "mamba2", ngroups=ngroups, headdim=8)
    rng, layers = np.random.default_rng(2), []
    for i in range(config.n_layer):
        grouping = sort_and_cluster(rng.lognormal(size=(config.d_inner // 8, 8)), ngroups)
        assert (grouping.channels != np.arange(config.d_inner)).any()
        weights = permute(fold_norms(layer_weights(lm, i), "mamba2"), grouping, config)
        layers.append(rotate_layer(weights) if rotated else weights)
    assert near(run(config, "mamba2", lm, layers, rotated), logits)


def test_a_wrong_order_is_noticed(tmp_path):
    """Permuting after rotating is the mistake that the order in the module's docstring prevents: these tests must see it."""
    config, lm, logits = source(tmp_path, "mamba2")
    grouping = sort_and_cluster(np.random.default_rng(0).lognormal(size=(config.d_inner // 16, 16)), 1)
    layers = [
        permute(rotate_layer(fold_norms(layer_weights(lm, i), "mamba2")), grouping, config)
        for i in range(config.n_layer)
    ]
    assert not near(run(config, "mamba2", lm, layers, True), logits)
