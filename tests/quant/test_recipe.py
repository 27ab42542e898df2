"""Recipes: the shipped ones say what the modes mean, JSON round-trips, and nonsense is refused by name."""

import json
from dataclasses import replace

import pytest

from quamba_edge.errors import BadRecipe
from quamba_edge.quant.recipe import MODES, Recipe, Scheme, load, mixed, shipped


@pytest.mark.parametrize("name", MODES)
def test_modes_mean_what_they_say(name):
    bits, act = MODES[name]
    scheme = shipped(name).scheme("layers.7.in_proj")
    assert (scheme.bits, scheme.act) == (bits, act)
    assert shipped(name).ssm_act == act
    assert shipped(name).rotate == (bits != 16)


def test_small_models_keep_8_bit_edges_and_large_ones_do_not():
    for site in ("embedding", "head"):
        assert shipped("w4a8", small=True).scheme(site).bits == 8
        assert shipped("w4a8", small=False).scheme(site).bits == 4
        assert shipped("w16a16").scheme(site).bits == 16


@pytest.mark.parametrize("name", MODES)
def test_json_round_trip(name, tmp_path):
    recipe = shipped(name)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    (tmp_path / "r.json").write_text(json.dumps(recipe.to_json()))
    assert load(str(tmp_path / "r.json")) == recipe


def test_a_later_pattern_wins():
    recipe = Recipe("x", {"*": Scheme(4), "layers.3.*": Scheme(8, 8)})
    assert recipe.scheme("layers.3.out_proj").bits == 8 and recipe.scheme("layers.30.out_proj").bits == 4


def test_a_per_layer_list_is_a_mix_on_one_set_of_codes():
    recipe = mixed(["W4A8", "w4a16", "w4a8"])
    assert [recipe.scheme(f"layers.{i}.in_proj").act for i in range(3)] == [8, 16, 8]
    assert all(recipe.scheme(f"layers.{i}.in_proj").bits == 4 for i in range(3))
    assert recipe.scheme("head").act == 8 and recipe.ssm_act == 8 and recipe.rotate and recipe.name == "w4ax"
    assert recipe.scheme("layers.1.dt_proj") == shipped("w4a16").scheme("layers.1.dt_proj")


def test_wrong_recipes_say_what_is_wrong(tmp_path):
    path = tmp_path / "r.json"
    for text, words in [
        ("{", "not JSON"),
        ("[]", "no layer"),
        ('["w4a8", "w9a9"]', "w9a9"),
        ("3", "object"),
        ('{"sites": {"*": {"bits": 3}}}', "bits"),
        ('{"sites": {"*": {"bitz": 4}}}', "bitz"),
        ('{"sites": {}, "speed": 1}', "speed"),
        ('{"sites": {}, "x_grain": "none"}', "x_grain"),
        ('{"sites": {}, "percentile": 0}', "percentile"),
        ('{"sites": {}, "percentile": "99"}', "percentile"),
        ('{"sites": {}, "rotate": "yes"}', "rotate"),
        ('{"sites": {}, "ssm_act": 7}', "ssm_act"),
        ('{"sites": {"*": "w4a8"}}', "object of bits"),
        ('{"sites": {"*": {"group": 128.0}}}', "group"),
        ('{"sites": {"*": {"group": 1099511627776}}}', "group"),
    ]:
        path.write_text(text)
        with pytest.raises(BadRecipe, match=words):
            load(str(path), n_layer=None)
    path.write_text('["w4a8"]')
    with pytest.raises(BadRecipe, match="1 layers, the model has 8"):
        load(str(path), n_layer=8)
    with pytest.raises(BadRecipe, match="neither a recipe"):
        load("w4a9")
    with pytest.raises(BadRecipe, match="says nothing about head"):
        Recipe("x", {"layers.*": Scheme()}).scheme("head")


@pytest.mark.parametrize("mode", ["w4a16", "w4a8"])
def test_fine_recipes_have_groups_of_32_and_6_bit_edges(mode):
    fine, plain = shipped(f"{mode}-g32"), shipped(mode)
    assert fine.scheme("layers.3.in_proj") == replace(plain.scheme("layers.3.in_proj"), group=32)
    assert fine.scheme("layers.3.x_proj") == plain.scheme("layers.3.x_proj")
    for edge in ("embedding", "head"):
        assert fine.scheme(edge) == replace(plain.scheme(edge), bits=6)
    assert load(f"{mode}-g32") == fine
