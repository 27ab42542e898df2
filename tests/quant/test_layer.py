"""One layer through the quantizer: what it stores, what its scales cover, and the streams that it hands on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from quamba_edge import models
from quamba_edge.calibrate.observe import FakeQuant, Observer
from quamba_edge.checkpoint import open_checkpoint
from quamba_edge.quant import site
from quamba_edge.quant.hadamard import rotate, unrotate
from quamba_edge.quant.layer import SITES, layer_schemes, quantize_layer, run_layer
from quamba_edge.quant.recipe import MODES, shipped
from quamba_edge.quant.transform import layer_reader, rotate_layer
from tests.tiny import write_checkpoint

CONV = {"mamba": ("x",), "mamba2": ("x", "B", "C")}  # what the convolution writes that is int8 in A8


def block_of(family, config, weights):
    block = models.find(family, "reference").Block(config)
    block.load_state_dict(weights)
    return block


class Quantized:
    """Layer 0 of a random model, quantized; `seen` is what its rotated self, with in_proj as stored and fed, showed of `before`."""

    def __init__(self, folder, family, recipe, source=None):
        checkpoint = open_checkpoint(
            write_checkpoint(folder, family, d_model=48, ngroups=2 if family == "mamba2" else 1)
        )
        read, generator = layer_reader(checkpoint, family), torch.Generator().manual_seed(3)
        self.config, self.recipe = checkpoint.config, recipe
        self.weights = rotate_layer(read(0)) if recipe.rotate else read(0)
        self.before = torch.randn(3, 70, 48, generator=generator)
        self.held = torch.randn(1, 70, 48, generator=generator)
        self.rotate_out = rotate if recipe.rotate else lambda x: x
        self.stream, self.exact = self.before.clone(), self.held.clone()
        self.source = None if source is None else source.clone()
        made = quantize_layer(0, read(0), family, self.config, recipe, self.stream, self.exact, self.source)
        self.sites = made.sites
        self.stored = {name: torch.from_numpy(array) for name, _, array in made.tensors}
        self.schemes = layer_schemes(recipe, 0, family)
        self.seen = Observer(self.rotate_out)
        scales = {"in_proj": self.stored["in_proj.in_scale"]} if self.schemes["in_proj"].act == 8 else {}
        as_fed = FakeQuant(self.rotate_out, scales)
        block = block_of(family, self.config, self.weights | {"mixer.in_proj.weight": self.value("in_proj")})
        run_layer(block, self.before, lambda n, v: as_fed(n, self.seen(n, v)) if n == "in_proj" else self.seen(n, v))

    def value(self, name):
        """The weight that a site's stored tensors stand for."""
        parts = {part: self.stored[f"{name}.{part}"] for part in site.specs((1, 1), self.schemes[name])}
        return site.decode(parts, self.schemes[name])


@pytest.mark.parametrize("family", SITES)
@pytest.mark.parametrize("mode", MODES)
def test_records_tensors_and_streams_agree(tmp_path, family, mode):
    q = Quantized(tmp_path, family, shipped(mode))
    names = {n: f"mixer.{n}.weight" for n in SITES[family]}
    assert list(q.sites) == list(names)
    weights = dict(q.weights)
    for name, full in names.items():
        scheme, record = q.schemes[name], q.sites[name]
        assert (record["N"], record["K"]) == q.weights[full].shape
        assert all(record[k] == getattr(scheme, k) for k in ("bits", "group", "act", "method"))
        assert (f"{name}.in_scale" in q.stored) == (scheme.act == 8)
        weights[full] = q.value(name)
    scales = {n: q.stored[f"{n}.in_scale"] for n in names if n != "x_proj" and q.schemes[n].act == 8}
    if mode in ("w8a8", "w4a8"):
        sizes = [q.seen.peak[n].numel() for n in CONV[family]]
        scales |= zip(CONV[family], q.stored["conv.out_scale"].split(sizes))
        if family == "mamba":
            weights[names["x_proj"]] = weights[names["x_proj"]] / scales["x"]
    else:
        assert "conv.out_scale" not in q.stored
    expected = q.before.clone()
    run_layer(block_of(family, q.config, weights), expected, FakeQuant(q.rotate_out, scales), out=expected)
    assert torch.allclose(q.stream, expected, atol=1e-5)  # the stream is what the stored numbers make of it


@pytest.mark.parametrize("family", SITES)
@pytest.mark.parametrize("mode", MODES)
def test_the_source_goes_on_as_it_was(tmp_path, family, mode):
    q = Quantized(tmp_path, family, shipped(mode))
    held = unrotate(q.held) if q.recipe.rotate else q.held
    source = layer_reader(open_checkpoint(tmp_path), family)(0)
    expected, _ = block_of(family, q.config, source)(held)
    assert torch.allclose(unrotate(q.exact) if q.recipe.rotate else q.exact, expected, atol=1e-4)


@pytest.mark.parametrize("family", SITES)
def test_scales_cover_what_was_seen_and_no_more(tmp_path, family):
    q = Quantized(tmp_path, family, replace(shipped("w8a8"), act_search=False, bc_grain="group"))
    for name in ("in_proj", "out_proj"):
        assert torch.isclose(q.stored[f"{name}.in_scale"] * 127, q.seen.peak[name], rtol=1e-5)
    conv = q.stored["conv.out_scale"] * 127
    x, *rest = (q.seen.peak[n] for n in CONV[family])
    assert torch.allclose(conv[: len(x)], x.clamp_min(x.max() * 1e-3), rtol=1e-5)  # channel by channel
    groups = [
        v.view(2, -1).amax(1, keepdim=True).expand(2, v.numel() // 2).flatten() for v in rest
    ]  # one per SSD group
    assert torch.allclose(conv[len(x) :], torch.cat([conv[:0], *groups]), rtol=1e-5)
    state = q.seen.peak["state"]
    rows, cols = q.stored["ssm.state_rows"], q.stored["ssm.state_cols"]
    covered = rows.view(-1, 1) * cols.view(-1, state.shape[-1]).repeat_interleave(
        len(rows) * state.shape[-1] // cols.numel(), 0
    )
    assert (covered.view(state.shape) * 127 >= 0.74 * state).all()


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_scales_folded_into_x_proj_give_the_unfolded_product(tmp_path, method):
    q = Quantized(tmp_path, "mamba", shipped("w8a8").with_method(method))
    columns, w = q.stored["conv.out_scale"], q.weights["mixer.x_proj.weight"]
    codes = torch.randint(-127, 128, (50, len(columns)), generator=torch.Generator().manual_seed(0)).float()
    folded, plain = codes @ q.value("x_proj").T, (codes * columns) @ w.T
    assert (folded - plain).square().mean() < 2e-4 * plain.square().mean()
    if method == "rtn":  # every weight is within half a step of its row
        assert ((q.value("x_proj") - w * columns).abs() <= 0.5001 * q.stored["x_proj.scales"][:, None]).all()


def test_a_layer_with_one_a16_site_among_a8_ones_keeps_its_ssm_in_floats(tmp_path):
    recipe = shipped("w4a8")
    sites = dict(recipe.sites) | {"layers.0.in_proj": shipped("w4a16").scheme("layers.0.in_proj")}
    q = Quantized(tmp_path, "mamba", type(recipe)(**{**vars(recipe), "sites": sites}))
    assert q.sites["x_proj"]["act"] == 16 and q.sites["out_proj"]["act"] == 8
    assert "conv.out_scale" not in q.stored and np.isfinite(q.stream.numpy()).all()


@pytest.mark.parametrize("family", SITES)
def test_weights_make_up_for_what_the_stream_has_lost_and_the_source_goes_on(tmp_path, family):
    source = torch.randn(3, 70, 48, generator=torch.Generator().manual_seed(5))
    lost = {}
    for share in (0.0, 0.5):
        recipe = replace(shipped("w4a16"), repair=share)
        q = Quantized(tmp_path, family, recipe, source=source)
        lost[share] = (q.stream - q.source).square().mean()
    expected, _ = block_of(family, q.config, layer_reader(open_checkpoint(tmp_path), family)(0))(unrotate(source))
    assert torch.allclose(unrotate(q.source), expected, atol=1e-4)
    assert lost[0.5] < lost[0.0]
