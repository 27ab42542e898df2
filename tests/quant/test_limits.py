"""Numbers that f16 or f32 cannot hold are refused where they are seen, by the name of the site."""

import math

import pytest
import torch

from quamba_edge.checkpoint import open_checkpoint
from quamba_edge.errors import BadCheckpoint, BadRecipe
from quamba_edge.pack import pack
from quamba_edge.quant import edges, site
from quamba_edge.quant.limits import check_input
from quamba_edge.quant.recipe import Scheme, shipped
from tests.test_pack import FEW, noise_text
from tests.tiny import config_json, parse_config, random_weights, write_checkpoint, write_weights


def changed(folder, family, change):
    """A random checkpoint with its weights (by name) put through `change`."""
    write_checkpoint(folder, family)
    weights = random_weights(parse_config(family, "state-spaces", config_json(family)))
    del weights["lm_head.weight"]
    change(weights)
    write_weights(folder, weights)
    return folder


def test_inputs_are_refused_by_what_they_are_fed_in():
    check_input("a", 65504.0, 16)
    check_input("a", 1e9, 8)
    with pytest.raises(BadRecipe, match="a: its input reaches 1e\\+09.*act 8"):
        check_input("a", 1e9, 16)
    for peak in (1e20, math.inf, math.nan):
        for act in (8, 16):
            with pytest.raises(BadCheckpoint, match="a: its input"):
                check_input("a", peak, act)


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
@pytest.mark.parametrize("mode", ["w16a16", "w4a8"])
def test_very_large_norms_are_told_at_the_first_layer(tmp_path, family, mode):
    def change(weights):
        for name in weights:
            if name.endswith("norm.weight"):
                weights[name] *= 1e4

    changed(tmp_path / "c", family, change)
    with pytest.raises((BadCheckpoint, BadRecipe), match="layers.0.*reaches"):
        pack(tmp_path / "c", tmp_path / "m", mode, noise_text(tmp_path), **FEW)
    assert not (tmp_path / "m").exists()


def test_an_f16_overflow_names_layer_and_site(tmp_path):
    name = "backbone.layers.1.mixer.out_proj.weight"
    changed(tmp_path / "c", "mamba2", lambda weights: weights[name].mul_(1e6))
    with pytest.raises(BadRecipe, match="layers.1.out_proj has weights"):
        pack(tmp_path / "c", tmp_path / "m", "w16a16", noise_text(tmp_path), **FEW)
    with pytest.raises(BadRecipe, match="w has weights too large for 4 bits"):
        site.encode("w", torch.full((16, 16), 1e7), Scheme(4, method="rtn"), shipped("w4a8"))


def test_the_head_is_checked_too(tmp_path):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, "mamba2"))
    with pytest.raises(BadRecipe, match="head: its input reaches"):
        stream, norm = torch.ones(1, 4, 64), torch.full((64,), 1e5)
        edges.observe_head(stream, checkpoint.config, shipped("w4a16"), norm, 16, hessian=False)


def test_a_perplexity_beyond_floats_is_still_a_number(tmp_path):
    changed(tmp_path / "c", "mamba2", lambda weights: weights["backbone.embedding.weight"].mul_(1e6))
    made = pack(tmp_path / "c", tmp_path / "m", "w8a8", noise_text(tmp_path), **FEW)
    assert made.perplexity_source == made.perplexity_bundle == math.exp(700)


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
@pytest.mark.parametrize("mode", ["w16a16", "w4a8", "w4a16", "w8a8"])
def test_rows_channels_and_layers_of_zeros_are_fine(tmp_path, family, mode):
    def change(weights):
        for name, w in weights.items():
            if name.endswith("proj.weight"):
                w[3] = 0
                if "layers.1." in name:
                    w.zero_()
            elif name.endswith(("norm.weight", "embedding.weight")) or "conv1d" in name:
                w[5] = 0

    changed(tmp_path / "c", family, change)
    made = pack(tmp_path / "c", tmp_path / "m", mode, noise_text(tmp_path), **FEW)
    assert abs(math.log(made.perplexity_bundle / made.perplexity_source)) < 0.05 * math.log(made.perplexity_source)
