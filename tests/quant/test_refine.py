"""What follows GPTQ never loses: scales by least squares, codes by coordinate descent, against doing it by hand."""

import numpy as np
import pytest
import torch

from quamba_edge.quant.gptq import inverse_factor, quantize_gptq
from quamba_edge.quant.recipe import Scheme
from quamba_edge.quant.refine import best_scales, damped, descend, refine
from quamba_edge.quant.rtn import Codes, quantize_rtn


def problem(rows=9, cols=48, seed=0):
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.normal(size=(300, cols)) @ rng.normal(size=(cols, cols))).float()
    return torch.tensor(rng.normal(size=(rows, cols))).float(), damped(x.T @ x)


def loss(w, value, hessian):
    gap = (w - value).double()
    return ((gap @ hessian.double()) * gap).sum(1)  # (N)


def test_best_scales_solve_the_least_squares_problem_of_each_row():
    w, h = problem(cols=40)  # the last group has 8 columns
    made = quantize_rtn(w, Scheme(4, group=16))
    steps = made.codes.float() - 8
    found = best_scales(w, steps, made.scales.float(), h, 16)
    root = torch.linalg.cholesky(h.double()).T  # loss = |root (w - v)|^2
    for row in range(len(w)):
        columns = torch.stack([torch.where(torch.arange(40) // 16 == g, steps[row], 0.0) for g in range(3)], 1)
        by_hand = torch.linalg.lstsq(root @ columns.double(), (root @ w[row].double())[:, None]).solution[:, 0]
        assert torch.allclose(found[row].double(), by_hand, rtol=1e-3)


def test_a_group_of_zeros_keeps_its_scale():
    w, h = problem()
    steps = (quantize_rtn(w, Scheme(4, group=16)).codes.float() - 8).index_fill(1, torch.arange(16), 0)
    scales = torch.full((len(w), 3), 0.25, dtype=torch.float16)
    found = best_scales(w, steps, scales, h, 16)
    assert (found[:, 0] == 0.25).all() and torch.isfinite(found).all() and (found[:, 1:] != 0.25).any()


def test_descent_takes_each_column_to_its_best_code():
    w, h = problem(cols=8)
    scales = quantize_rtn(w, Scheme(4, group=8)).scales
    steps = quantize_rtn(w, Scheme(4, group=8)).codes.float() - 8
    by_hand = steps.clone()
    for k in range(8):
        tries = []
        for code in range(-8, 8):
            one = by_hand.clone()
            one[:, k] = code
            tries.append(loss(w, one * scales.float(), h))
        by_hand[:, k] = torch.stack(tries).argmin(0).float() - 8
    descend(w, steps, scales, h, 8)
    assert torch.equal(steps, by_hand)


@pytest.mark.parametrize("cols", [48, 200])  # within a block of columns, and over its border
def test_every_round_lowers_the_loss_of_gptq(cols):
    w, h = problem(cols=cols)
    made = quantize_gptq(w, inverse_factor(h, 1e-4), Scheme(4, group=16))
    losses = [loss(w, refine(w, made, h, rounds).dequantize(), h).sum() for rounds in range(4)]
    assert losses[0] > 1.02 * losses[1] > 1.02 * losses[2] and losses[2] >= losses[3] * 0.999


def test_zero_scales_and_silent_inputs_stay_finite():
    w, _ = problem(cols=16)
    w[0] = 0
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    x[:, 3] = 0
    made = quantize_rtn(w, Scheme(4, group=8))
    flat = Codes(made.codes, made.scales.index_fill(0, torch.tensor([1]), 0), 4, 8)
    again = refine(w, flat, damped(x.T @ x), 2)
    assert torch.isfinite(again.dequantize()).all() and (again.dequantize()[0] == 0).all()
