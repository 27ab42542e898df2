"""Choices and the recipes made of them, against the recipes that are shipped."""

import pytest

from quamba_edge.errors import BadUsage
from quamba_edge.models import published
from quamba_edge.quant import recipe as recipes
from quamba_edge.quant.layer import SITES, check_recipe, layer_schemes
from quamba_edge.search.space import SETS, Choice, Space, written
from quamba_edge.search.store import natural_ends, uniform_recipe


@pytest.mark.parametrize("family", SITES)
@pytest.mark.parametrize("mode", ["w4a8", "w4a16", "w8a8"])
@pytest.mark.parametrize("small", [True, False])
def test_a_uniform_recipe_is_the_shipped_one_site_by_site(family, mode, small):
    shipped = recipes.shipped(mode, small=small)
    found = uniform_recipe(mode, natural_ends(mode, small), small)
    assert (found.rotate, found.ssm_act) == (shipped.rotate, shipped.ssm_act)
    assert layer_schemes(found, 3, family) == layer_schemes(shipped, 3, family)
    if mode != "w8a8" or small:  # of a large model's 8-bit layers the ends stay what 4-bit ones have
        assert [found.scheme(s) for s in ("embedding", "head")] == [shipped.scheme(s) for s in ("embedding", "head")]


@pytest.mark.parametrize("name", ["mamba2-130m", "mamba-130m"])
def test_a_mixed_recipe_gives_every_layer_its_choice(name, tmp_path):
    family, config = published.config(name)
    space = Space.of(family, config, True, "wxax", "w8a8,w4a8")
    given = {**space.uniform("w4a8", "w4a8"), "layers.3": "w4a16/out_proj=8", "layers.5": "w8a8"}
    recipe = recipes.Recipe.from_json(space.recipe(given).to_json())
    check_recipe(recipe, family, config)
    assert [recipe.scheme(f"layers.{i}.in_proj").bits for i in (2, 3, 5)] == [4, 4, 8]
    assert [recipe.scheme(f"layers.{i}.out_proj").bits for i in (2, 3, 5)] == [4, 8, 8]
    assert [recipe.scheme(f"layers.{i}.in_proj").act for i in (2, 3, 5)] == [8, 16, 8]
    assert recipe.scheme("head").bits == recipe.scheme("embedding").bits == 4
    assert space.a16(given) == 1 and space.modes() == ["w4a8", "w8a8", "w4a16", "w8a16"]


def test_the_paper_s_list_is_the_same_recipe():
    space = Space("mamba2", 4, True, SETS["w4ax"], ("w8a8",))
    given = {**space.uniform(), "layers.1": "w4a16"}
    ours, listed = space.recipe(given), recipes.Recipe.from_json(["w4a8", "w4a16", "w4a8", "w4a8"])
    assert [layer_schemes(ours, i, "mamba2") for i in range(4)] == [
        layer_schemes(listed, i, "mamba2") for i in range(4)
    ]
    assert (ours.rotate, ours.ssm_act, ours.scheme("head")) == (listed.rotate, listed.ssm_act, listed.scheme("head"))


@pytest.mark.parametrize("text", ["w3a8", "w4", "w16a8", "w4a8/x_proj=4", "w16a16/out_proj=4", "w4a8/out_proj=16", ""])
def test_what_is_no_choice_is_refused(text):
    with pytest.raises(BadUsage, match="no choice for a layer"):
        Choice.parse(text)


@pytest.mark.parametrize("choices, ends", [("w4a8,w4a8", None), ("w4a8", "w4a8/out_proj=8")])
def test_what_is_no_space_is_refused(choices, ends):
    family, config = published.config("mamba2-130m")
    with pytest.raises(BadUsage):
        Space.of(family, config, True, choices, ends)


def test_an_assignment_in_words():
    space = Space("mamba2", 6, True, SETS["w4ax"], ("w8a8",))
    given = {**space.uniform(), "layers.1": "w4a16", "layers.5": "w4a16"}
    assert written(given) == "w4a8: 0 2-4; w4a16: 1 5; ends w8a8"
