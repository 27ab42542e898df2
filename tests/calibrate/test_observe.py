"""Observers see everything that passes; fake quantization is the runtime's rounding."""

import math

import torch

from quamba_edge.calibrate.observe import (
    FakeQuant,
    Lack,
    Observer,
    count,
    count_tops,
    fake_quant,
    scale_of,
    searched_scale,
    state_scales,
)
from quamba_edge.quant.hadamard import rotate


def identity(x):
    return x


def test_peaks_and_hessians_accumulate_over_batches():
    observer = Observer(identity, {"in_proj": "gptq", "x_proj": "rtn"})
    batches = [torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(s)) for s in range(3)]
    for batch in batches:
        observer("in_proj", batch)
        observer("x", batch)
    flat = torch.cat(batches).reshape(-1, 8)
    assert torch.equal(observer.peak["x"], flat.abs().amax(0))
    assert observer.peak["in_proj"] == flat.abs().max()
    assert torch.allclose(observer.moments["in_proj"], flat.T @ flat, rtol=1e-5)
    assert torch.allclose(observer.moments["x_proj"], flat.square().sum(0), rtol=1e-5)


def test_out_proj_is_observed_after_the_online_rotation():
    value = torch.randn(1, 4, 12, generator=torch.Generator().manual_seed(1))
    observer = Observer(rotate, {"out_proj": "gptq"})
    assert torch.allclose(observer("out_proj", value), rotate(value))
    flat = rotate(value)[0]
    assert torch.allclose(observer.moments["out_proj"], flat.T @ flat, atol=1e-5)


def test_a_percentile_cuts_rare_outliers_of_x_only():
    value = torch.ones(1, 1000, 4)
    value[0, 7] = 50
    observer = Observer(identity, percentile=99.0)
    for name in ("x", "in_proj"):
        observer(name, value)
    assert observer.peak["x"].max() == 1 and observer.peak["in_proj"] == 50


def test_a_silent_channel_still_gets_a_usable_scale():
    scale = scale_of(torch.tensor([10.0, 0.0]))
    assert scale[0] == 10 / 127 and torch.isclose(scale[1], torch.tensor(0.01 / 127))


def test_fake_quant_rounds_to_even_and_clamps():
    assert fake_quant(torch.tensor([0.5, 1.5, -2.5, 900.0]), torch.ones(1)).tolist() == [0, 2, -2, 127]
    tap = FakeQuant(identity, {"x": torch.tensor([1.0, 0.1])})
    assert torch.allclose(tap("x", torch.tensor([[[1.4, 1.44]]])), torch.tensor([[[1.0, 1.4]]]))
    assert tap("in_proj", torch.tensor([[[1 / 3]]])).item() == torch.tensor(1 / 3).half().float().item()
    assert tap("B", torch.tensor([[[1 / 3]]])).item() == torch.tensor(1 / 3).item()


def test_state_scales_cover_what_was_seen():
    peak = torch.rand(2, 6, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 8)
    rows, cols = state_scales(peak, 1024, math.log(1024))
    covered = rows.view(2, 6, 1) * cols.view(2, 1, 8) * 127
    assert (covered >= peak * 0.9999).all() and covered.max() < 20 * peak.max()
    few, same = state_scales(peak, 32, math.log(1024))
    assert torch.allclose(few, 2 * rows) and (same == cols).all()  # the largest of 32 values is half that of 1024


def test_lack_is_what_the_source_has_beyond_ours_times_ours():
    generator = torch.Generator().manual_seed(2)
    lack = Lack(Observer(rotate, {"out_proj": "gptq"}), ["in_proj", "out_proj"])
    ours, theirs = (torch.randn(2, 3, 5, 12, generator=generator) for _ in range(2))
    for a, b in zip(ours, theirs, strict=True):  # batches
        for name in ("in_proj", "z", "out_proj"):
            lack.quantized(name, a)
        for name in ("in_proj", "z", "out_proj"):
            lack.source(name, b)
    a, b = ours.reshape(-1, 12), theirs.reshape(-1, 12)
    assert set(lack.lack) == {"in_proj", "out_proj"}
    assert torch.allclose(lack.lack["in_proj"], (b - a).T @ a, atol=1e-4)
    assert torch.allclose(lack.lack["out_proj"], rotate(b - a).T @ rotate(a), atol=1e-4)
    assert torch.allclose(lack.observer.moments["out_proj"], rotate(a).T @ rotate(a), atol=1e-4)


def test_the_searched_scale_loses_least_of_every_token_alike():
    generator = torch.Generator().manual_seed(4)
    sizes = torch.randn(4000, 1, generator=generator).exp()  # some tokens are much larger than others
    value = torch.randn(4000, 32, generator=generator) * sizes**2
    observer = Observer(identity, spread=["out_proj"])
    for batch in value.split(1000):
        observer("out_proj", batch)
    assert torch.allclose(observer.counts["out_proj"], count(value))

    def loss(scale):
        return float(((value - fake_quant(value, scale)).square().sum(1) / value.square().sum(1)).sum())

    found, widest = searched_scale(observer.peak["out_proj"], observer.counts["out_proj"]), scale_of(value.abs().max())
    assert loss(found) < 1.05 * min(loss(widest * 0.95**k) for k in range(48)) and loss(found) < 0.7 * loss(widest)


def test_the_covering_scale_clips_a_hundredth_of_the_tokens():
    generator = torch.Generator().manual_seed(4)
    value = torch.randn(4000, 32, generator=generator) * torch.randn(4000, 1, generator=generator).exp()
    observer = Observer(identity, unnormed=["out_proj"])
    for batch in value.split(1000):
        observer("out_proj", batch)
    assert torch.equal(observer.tops["out_proj"], count_tops(value)) and observer.tops["out_proj"].sum() == 4000
    reach = 127 * observer.input_scale("out_proj")
    top = value.abs().amax(1)
    assert top.quantile(0.99) <= reach <= top.quantile(0.99) * 1.03 and reach < 0.7 * top.max()
    few = Observer(identity, unnormed=["out_proj"])
    few("out_proj", value[:10])
    assert torch.allclose(few.input_scale("out_proj"), scale_of(top[:10].max()))  # no more than the largest
    few("out_proj", torch.zeros(2000, 32))
    assert torch.isfinite(few.input_scale("out_proj"))


def test_evenly_spread_inputs_keep_nearly_all_of_their_range():
    value = torch.rand(1, 1000, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert searched_scale(value.abs().max(), count(value)) > 0.9 * scale_of(value.abs().max())
    silent = torch.zeros(1, 10, 8)
    assert torch.isfinite(searched_scale(silent.abs().max(), count(silent)))
