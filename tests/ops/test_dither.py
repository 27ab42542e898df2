"""The dither of int8 states: a change smaller than half a step must not be lost, and nobody's random numbers are needed."""

import math

import numpy as np
import pytest

from quamba_edge.ops.numerics import dither, store_state
from quamba_edge.ops.op import all_ops

ROWS, N = 24, 16


def dts(tokens: int, seed: int = 0) -> np.ndarray:
    """(tokens, 1, ROWS): dt as a model makes it, another one for every token."""
    return np.random.default_rng(seed).normal(0, 1, (tokens, 1, ROWS)).astype(np.float32)


def test_uniform_and_repeatable() -> None:
    dt = dts(400)
    u = np.stack([dither(row, N) for row in dt])  # (tokens, 1, ROWS, N)
    assert u.dtype == np.float32 and u.min() >= -0.5 and u.max() <= 0.5
    counts, _ = np.histogram(u, bins=16, range=(-0.5, 0.5))
    assert abs(counts / u.size * 16 - 1).max() < 0.02
    assert abs(u.mean(axis=0)).max() < 5 / math.sqrt(12 * 400), "an element's dither has a mean of its own"
    assert (dither(dt[0], N) == u[0]).all() and (dither(dt[0].astype(np.float64), N) == u[0]).all()
    neighbours = np.corrcoef(u[:, 0, :-1].ravel(), u[:, 0, 1:].ravel())[0, 1]
    following = np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]
    assert abs(neighbours) < 0.02 and abs(following) < 0.02


def test_a_row_keeps_its_sum() -> None:
    """Errors of independent roundings would add up like a random walk over n; those of a row's Weyl sequence stay near zero."""
    value, scale = np.full((1, ROWS, 128), 0.3, np.float32), np.ones((ROWS, 128), np.float32)
    codes = [store_state(value, np.zeros(0, np.int8), scale, dt) for dt in dts(50)]
    error = np.stack(codes).sum(axis=-1) - 0.3 * 128
    assert np.sqrt(np.mean(error**2)) < 0.5 * math.sqrt(128 * 0.3 * 0.7)


@pytest.mark.parametrize("family", ["ssd", "scan"])
def test_what_fades_slowly_fades(family: str) -> None:
    """600 tokens of nothing, a decay of 0.998 each: exp(-1.2) = 0.30 is left.  Rounded to the nearest all of it would stay."""
    zero, one = np.zeros, np.ones
    state, rows, cols = np.full((1, ROWS, N), 60, np.int8), one(ROWS, np.float32), one(N, np.float32)
    d = 0.002  # softplus(dt + bias) = d, whatever dt's noise adds
    for dt in dts(600):
        given = {"dt": dt[None] * np.float32(1e-6), "dt_bias": np.full(ROWS, math.log(math.expm1(d)), np.float32)}
        given |= {"D": zero(ROWS, np.float32), "state_rows": rows, "state_cols": cols}
        if family == "ssd":
            given |= {"xbc": zero((1, 1, ROWS + 2 * N), np.float32), "A": -one(ROWS, np.float32)}
            shape = {"S": 1, "T": 1, "H": ROWS, "P": 1, "N": N, "g": 1, "dt_min": 0.0, "dt_max": math.inf}
            state, _ = all_ops()["ssd_f32"].reference(state=state.reshape(1, ROWS, 1, N), **given, **shape)
        else:
            empty = zero((1, 1, N), np.float32)
            given |= {"x": zero((1, 1, ROWS), np.float32), "A": -one((ROWS, N), np.float32), "B": empty, "C": empty}
            given["z"] = zero((1, 1, ROWS), np.float32)
            state, _ = all_ops()["scan_f32"].reference(state=state.reshape(1, ROWS, N), **given, S=1, T=1, E=ROWS, N=N)
    left = state.astype(float)
    assert left.mean() == pytest.approx(60 * math.exp(-1.2), rel=0.03)
    assert left.std() < 6
