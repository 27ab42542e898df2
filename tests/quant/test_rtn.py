"""Codes must stand for the nearest grid value, and never cost more than plain absmax."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quamba_edge.errors import BadRecipe
from quamba_edge.quant.recipe import Scheme
from quamba_edge.quant.rtn import Codes, quantize_rtn

W4 = Scheme(bits=4, group=32)
W8 = Scheme(bits=8)


def weight(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 99))
def test_4_bit_codes_are_the_nearest_on_their_grid(rows, eighths, seed):
    w = weight(rows, 8 * eighths, seed)
    made = quantize_rtn(w, W4)
    assert made.codes.dtype == torch.uint8 and int(made.codes.max()) <= 15
    assert made.scales.shape == (rows, -(-w.shape[1] // 32)) and made.scales.dtype == torch.float16
    wide = made.scales.float().repeat_interleave(32, 1)[:, : w.shape[1]]
    grid = (torch.arange(16).float() - 8)[None, None, :] * wide[:, :, None]
    nearest = (grid - w[:, :, None]).abs().amin(2)
    assert torch.allclose((made.dequantize() - w).abs(), nearest, atol=1e-6)


@given(st.integers(0, 99))
def test_searching_the_scale_never_loses_to_absmax(seed):
    w = weight(16, 64, seed)
    searched, plain = (quantize_rtn(w, W4, search=s).dequantize() for s in (True, False))
    assert (searched - w).square().sum() <= (plain - w).square().sum() * 1.0001


def test_importance_moves_the_error_to_unimportant_columns():
    w, importance = weight(64, 32), torch.ones(32)
    importance[:4] = 1000
    plain, aware = (quantize_rtn(w, W4, i).dequantize() - w for i in (None, importance))
    assert aware[:, :4].square().sum() < plain[:, :4].square().sum()


def test_8_bit_rows_reach_127_at_their_extreme_and_per_tensor_ones_share_a_scale():
    w = weight(5, 24) * torch.tensor([1, 10, 0.1, 3, 1.0])[:, None]
    made = quantize_rtn(w, W8)
    assert (made.codes.abs().amax(1) == 127).all()
    assert ((made.dequantize() - w).abs() <= made.scales[:, None] * 0.5001).all()
    assert len(quantize_rtn(w, W8, peak=w.abs().max()).scales.unique()) == 1


def test_zero_weights_become_zero():
    for scheme in (W4, W8):
        assert not quantize_rtn(torch.zeros(16, 40), scheme).dequantize().any()


def test_signed_scales_clip_rows_whose_extreme_is_negative():
    w = torch.tensor([[-4.0, 1.0, 0.5, 0.25] * 8])
    assert quantize_rtn(w, W8, signed=True).dequantize().min() > -1.1  # the published defect, kept for the ablation
    assert quantize_rtn(w, W8).dequantize().min() == -4


def test_dequantize_is_the_formula_of_the_contract():
    codes, scales = torch.tensor([[0, 15, 8, 3]], dtype=torch.uint8), torch.tensor([[0.5, -2.0]], dtype=torch.float16)
    assert Codes(codes, scales, 4, 2).dequantize().tolist() == [[-4.0, 3.5, 0.0, 10.0]]


@pytest.mark.parametrize("bad", [dict(bits=5), dict(act=4), dict(bits=16, act=8), dict(group=12), dict(method="magic")])
def test_schemes_without_a_kernel_are_refused(bad):
    with pytest.raises(BadRecipe):
        Scheme(**bad)
