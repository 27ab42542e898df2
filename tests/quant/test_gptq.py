"""GPTQ against a loop that re-solves the least-squares problem by hand, and against round to nearest."""

import numpy as np
import pytest
import torch

from quamba_edge.quant.gptq import inverse_factor, quantize_gptq, repaired
from quamba_edge.quant.recipe import Scheme
from quamba_edge.quant.rtn import encode4, quantize_rtn, scale4


def problem(rows=12, cols=80, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(cols, cols)) * (1 + 5 * rng.random(cols))  # correlated inputs, some large
    x = torch.tensor(rng.normal(size=(400, cols)) @ mix).float()
    return torch.tensor(rng.normal(size=(rows, cols))).float(), x


def loss(w, value, x):
    return float(((w - value) @ x.T).square().sum())


def test_factor_is_the_cholesky_factor_of_the_damped_inverse():
    _, x = problem()
    h = x.T @ x
    damped = h + 0.01 * h.diagonal().mean() * torch.eye(len(h))
    u = inverse_factor(h)
    assert torch.allclose(u.double().T @ u.double() @ damped.double(), torch.eye(len(h)).double(), atol=1e-2)
    assert not u.tril(-1).any()


def test_matches_a_column_by_column_loop_that_solves_for_the_open_columns():
    """After column j is fixed, the remaining ones move to the exact minimum of the damped loss (Optimal Brain Surgeon)."""
    w, x = problem(rows=3, cols=24)
    scheme = Scheme(bits=4, group=8)
    h = (x.T @ x).double()
    h += 0.01 * h.diagonal().mean() * torch.eye(len(h))
    work, codes, scales = w.double().clone(), torch.zeros(w.shape, dtype=torch.uint8), []
    u = inverse_factor(x.T @ x)
    for j in range(24):
        if j % 8 == 0:
            s = scale4(work[:, j : j + 8].float(), u.diagonal().square().reciprocal()[j : j + 8], True)
            scales.append(s)
        codes[:, j : j + 1] = encode4(work[:, j : j + 1].float(), s)
        gap = work[:, j] - (codes[:, j].double() - 8) * s[:, 0].double()
        inverse = torch.linalg.inv(h[j:, j:])  # of the columns still open
        work[:, j:] -= gap[:, None] * inverse[0][None, :] / inverse[0, 0]
    made = quantize_gptq(w, u, scheme)
    assert (made.codes == codes).float().mean() > 0.98  # f32 against f64 may turn a tie
    assert torch.allclose(made.scales.float(), torch.cat(scales, 1).float(), rtol=2e-3)


@pytest.mark.parametrize("scheme", [Scheme(4, group=32), Scheme(4, group=128), Scheme(8)])
def test_loses_less_than_round_to_nearest(scheme):
    w, x = problem()
    made = quantize_gptq(w, inverse_factor(x.T @ x), scheme).dequantize()
    assert loss(w, made, x) < 0.9 * loss(w, quantize_rtn(w, scheme).dequantize(), x)


def test_rows_are_independent_so_slabs_give_the_same_codes():
    w, x = problem(rows=10)
    u = inverse_factor(x.T @ x)
    whole = quantize_gptq(w, u, Scheme(4, group=16))
    halves = [quantize_gptq(part, u, Scheme(4, group=16)) for part in (w[:4], w[4:])]
    assert torch.equal(whole.codes, torch.cat([p.codes for p in halves]))


def test_dead_inputs_neither_receive_nor_spread_error():
    w, x = problem(cols=32)
    x[:, 5] = 0
    made = quantize_gptq(w, inverse_factor(x.T @ x), Scheme(4, group=16))
    assert torch.isfinite(made.dequantize()).all()


def test_an_infinite_hessian_is_refused():
    with pytest.raises(ArithmeticError):
        inverse_factor(torch.full((4, 4), torch.inf))


def test_a_repaired_weight_says_on_noisy_inputs_what_the_weight_says_of_clean_ones():
    w, x = problem()
    noisy = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * x.std(0)
    factor, lack = inverse_factor(noisy.T @ noisy, 1e-6), (x - noisy).T @ noisy
    wanted = x @ w.T
    best = torch.linalg.lstsq(noisy.double(), wanted.double()).solution.T
    assert torch.allclose(repaired(w, factor, lack, 1.0), best.float(), atol=1e-2)
    miss = [float((noisy @ repaired(w, factor, lack, share).T - wanted).square().mean()) for share in (0, 0.5, 1)]
    assert miss[0] > miss[1] > miss[2]
