"""The outline of a bundle that is not packed yet is the manifest that packing writes."""

from dataclasses import replace

import pytest

from quamba_edge.apps.plan import plan
from quamba_edge.bundle import outline as app
from quamba_edge.bundle.reader import Bundle
from quamba_edge.checkpoint import hub
from quamba_edge.errors import BadRecipe
from quamba_edge.models import published
from quamba_edge.pack import pack
from quamba_edge.quant.recipe import Recipe, shipped
from tests.golden.make import HERE
from tests.tiny import write_checkpoint


def plain(tensors):
    return {n: (t.dtype, t.shape, t.layout) for n, t in tensors.items() if n != "tokenizer.json"}


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_it_is_what_packing_wrote(family):
    with Bundle.open(HERE / f"{family}.qedge") as bundle:
        made = bundle.manifest
        outline = app.outline(family, bundle.config, Recipe.from_json(made.recipe))
        assert outline.sites == made.sites and outline.rotate == made.rotate
        assert plain(outline.tensors) == plain(made.tensors)
        in_file = sum(e.nbytes for name, e in bundle.places.items() if name != "tokenizer.json")
        assert app.weight_bytes(outline) == app.weight_bytes(made) == in_file
        assert app.file_bytes(outline) == pytest.approx((HERE / f"{family}.qedge").stat().st_size, rel=0.01)


MODES = ("w16a16", "w8a8", "w4a16", "w4a8")
SIZES = {"mamba": {"d_state": 16}, "mamba2": {"d_state": 128, "headdim": 64, "ngroups": 2}}


def planned_and_packed(folder, out, mode):
    """Bytes of the file that `plan` predicts from config.json, and of the one that `pack` writes."""
    planned = plan(str(folder), "orin-nano-8gb", recipe=mode).file_bytes
    made = pack(folder, out, mode, method="rtn", calib_samples=1, calib_len=16, eval_tokens=0)
    assert made.bytes == out.stat().st_size and plan(str(out), "orin-nano-8gb").file_bytes == made.bytes
    return planned, made.bytes


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_plan_knows_the_bytes_of_every_mode(family, tied, tmp_path):
    """Of a small model the header is a large part, and what was measured is not planned: some hundred bytes of 1 MB."""
    folder = write_checkpoint(tmp_path / "c", family, d_model=256, n_layer=2, tied=tied, **SIZES[family])
    for mode in MODES:
        planned, packed = planned_and_packed(folder, tmp_path / f"{mode}.qedge", mode)
        assert planned == pytest.approx(packed, rel=0.01), mode


@pytest.mark.slow
@pytest.mark.parametrize("name", published.NAMES)
def test_plan_knows_the_bytes_of_a_layer_of_every_published_width(name, tmp_path):
    family, config = published.config(name)
    sizes = {"d_model": config.d_model, "n_layer": 1, "d_state": config.d_state, "tied": config.tie_embeddings}
    sizes |= {"headdim": config.headdim, "ngroups": config.ngroups} if family == "mamba2" else {}
    layout = "falcon" if name.startswith("falcon") else "state-spaces"
    folder = write_checkpoint(tmp_path / "c", family, layout, **sizes)
    found = hub.read_config(folder)[1]
    of_layer = set(config.to_json()) - {"n_layer", "vocab_size", "true_vocab_size"}
    assert {k: found.to_json()[k] for k in of_layer} == {k: config.to_json()[k] for k in of_layer}
    planned, packed = planned_and_packed(folder, tmp_path / "m.qedge", "w4a8")
    assert planned == pytest.approx(packed, rel=0.002)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["w8a8", "w4a8"])  # the small models above have all four
@pytest.mark.parametrize("name", ["mamba-130m", "mamba2-130m"])
def test_plan_knows_the_bytes_of_a_published_size(name, mode, tmp_path):
    family, wanted = published.config(name)
    sizes = {"d_model": 768, "n_layer": 24, "vocab": 50277, "pad": 8 if family == "mamba" else 16}
    folder = write_checkpoint(
        tmp_path / "c", family, **sizes, **SIZES[family] | ({"ngroups": 1} if family == "mamba2" else {})
    )
    (folder / "tokenizer.json").unlink()  # that of 50,277 ids is not at hand
    assert hub.read_config(folder) == (family, wanted)
    planned, packed = planned_and_packed(folder, tmp_path / "m.qedge", mode)
    assert planned - app.TOKENIZER_BYTES_PER_ID * 50277 == pytest.approx(packed, rel=0.001)


@pytest.mark.parametrize("mode", ["w16a16", "w8a8", "w4a16", "w4a8"])
@pytest.mark.parametrize("name", ["mamba-130m", "mamba2-8b"])
def test_every_recipe_has_one_that_its_own_check_accepts(name, mode):
    family, config = published.config(name)
    app.outline(family, config, shipped(mode)).check()


# Parameters, and bytes of a W4A8 file, as the authors of Quamba2 and the hub count them.
@pytest.mark.parametrize(
    "name, millions", [("mamba-130m", 129.1), ("mamba-2.8b", 2768.3), ("mamba2-130m", 129.0), ("mamba2-8b", 8237.0)]
)
def test_parameters_are_those_that_the_name_promises(name, millions):
    assert app.parameters(*published.config(name)) == pytest.approx(millions * 1e6, rel=0.001)


def test_published_names_are_known_with_and_without_their_owner():
    assert published.config("state-spaces/mamba2-2.7b") == published.config("mamba2-2.7b")
    assert published.config("mamba3-1b") is None
    for name in published.NAMES:
        family, config = published.config(name)
        assert config.family == family


def test_a_recipe_that_parts_what_the_model_ties_is_refused():
    family, config = published.config("mamba2-130m")
    recipe = shipped("w4a8")
    parted = replace(recipe, sites={**recipe.sites, "head": replace(recipe.sites["head"], bits=4)})
    with pytest.raises(BadRecipe, match="ties them"):
        app.outline(family, config, parted)


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_what_is_stored_narrower_counts_as_it_is_loaded(family, tmp_path):
    """The memory of a plan is that of the arrays that kernels read; 6-bit edges have 8 bits there."""
    folder, out = write_checkpoint(tmp_path / "c", family), tmp_path / "m.qedge"
    pack(folder, out, "w4a8-g32", method="rtn", calib_samples=1, calib_len=16, eval_tokens=0)
    with Bundle.open(out) as bundle:
        names = [n for n in bundle.manifest.tensors if n != "tokenizer.json"]
        loaded, stored = (sum(read(n).nbytes for n in names) for read in (bundle.tensor, bundle.stored))
        assert app.loaded_bytes(bundle.manifest) == loaded > app.weight_bytes(bundle.manifest) == stored
        weights = next(p for p in plan(str(out), "orin-nano-8gb").memory if p.name == "weights")
        assert weights.bytes == loaded
