"""The ends of the model: what the packed embedding gives, what enters the head, and the source's own score."""

import numpy as np
import pytest
import torch

from quamba_edge import layouts, models
from quamba_edge.calibrate.observe import scale_of
from quamba_edge.checkpoint import open_checkpoint
from quamba_edge.ops import embed
from quamba_edge.quant import edges
from quamba_edge.quant.gptq import inverse_factor
from quamba_edge.quant.hadamard import rotate
from quamba_edge.quant.recipe import Scheme, shipped
from tests.tiny import write_checkpoint

IDS = torch.randint(0, 257, (3, 20), generator=torch.Generator().manual_seed(5))


def opened(folder, **sizes):
    checkpoint = open_checkpoint(write_checkpoint(folder, "mamba2", **sizes))
    return checkpoint, models.find("mamba2", "reference").LM.from_checkpoint(checkpoint)


def final_stream(lm, ids):
    """The residual stream that enters the final norm."""
    stream = lm.backbone.embedding(ids)
    for block in lm.backbone.layers:
        stream, _ = block(stream)
    return stream


@pytest.mark.parametrize("scheme", [Scheme(4, group=32), Scheme(8), Scheme(16)], ids=lambda s: f"{s.bits} bits")
def test_rows_looked_up_are_those_of_the_embed_op(tmp_path, scheme, monkeypatch):
    monkeypatch.setattr(edges, "SLAB", 64)  # several slabs
    checkpoint, _ = opened(tmp_path, d_model=72)  # 72 = 2 groups of 32 and a tail
    scheme = Scheme(scheme.bits, 16, scheme.group, "rtn")
    made = edges.store_edge(checkpoint, "backbone.embedding.weight", scheme, shipped("w4a16"))
    logical = {part: layouts.unpack(layout, array, shape) for part, shape, layout, array in made}
    op = getattr(embed, f"embed_w{scheme.bits}")
    expected = op(IDS.numpy().reshape(-1), **logical, K=72, G=scheme.group)
    found = edges.looked_up(made, scheme, IDS.numpy())
    assert found.shape == (3, 20, 72) and np.array_equal(found.numpy().reshape(-1, 72), expected)
    exact = rotate(checkpoint.tensor("backbone.embedding.weight").float())[IDS]
    assert float((found - exact).std() / exact.std()) < {4: 0.12, 8: 0.01, 16: 0.001}[scheme.bits]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mode", ["w4a8", "w16a16"])  # rotated and not
def test_head_and_its_input_give_the_reference_logits(tmp_path, tied, mode):
    checkpoint, lm = opened(tmp_path, tied=tied)
    recipe, norm, stream = shipped(mode), lm.backbone.norm_f.weight, final_stream(lm, IDS)
    turned = rotate if recipe.rotate else lambda x: x
    head = turned(lm.lm_head.weight if tied else lm.lm_head.weight * norm)
    found = edges.head_input(turned(stream), checkpoint.config, recipe, norm) @ head.T
    assert torch.allclose(found, lm(IDS)[0], atol=1e-4)


def test_the_head_is_observed_over_all_sequences(tmp_path):
    checkpoint, lm = opened(tmp_path, tied=False)
    recipe, norm, stream = shipped("w4a8"), lm.backbone.norm_f.weight, rotate(final_stream(lm, IDS))
    x = edges.head_input(stream, checkpoint.config, recipe, norm).reshape(-1, 64)
    scale, factor = edges.observe_head(stream, checkpoint.config, recipe, norm, 8, hessian=True)
    assert scale.shape == (1,) and torch.equal(scale, scale_of(x.abs().max().reshape(1)))
    assert torch.allclose(factor, inverse_factor(x.T @ x), rtol=1e-3, atol=1e-5)
    assert edges.observe_head(stream, checkpoint.config, recipe, norm, 8, hessian=False)[1] is None


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mode", ["w4a8", "w16a16"])
def test_negative_log_likelihood_is_that_of_a_plain_log_softmax(tmp_path, tied, mode, monkeypatch):
    monkeypatch.setattr(edges, "SLAB", 64)  # the last of 5 slabs holds one true row, and padding that must not count
    checkpoint, lm = opened(tmp_path, tied=tied)
    assert checkpoint.config.vocab_size > checkpoint.config.true_vocab_size == 257
    ids, recipe = IDS.clone(), shipped(mode)
    ids[0, 3] = 256
    logits = lm(ids)[0][:, :-1, :257].double().log_softmax(-1)
    expected = -logits.gather(2, ids[:, 1:, None]).mean()
    stream = final_stream(lm, ids)
    exact = rotate(stream) if recipe.rotate else stream
    found = edges.negative_log_likelihood(checkpoint, exact, ids.numpy(), checkpoint.config, recipe)
    assert found == pytest.approx(float(expected), rel=1e-5)
