"""The rotation is orthonormal, is undone, and is the matrix it says."""

import numpy as np
import pytest

from quamba_edge import rotation

SIZES = [1, 2, 16, 12, 24, 20, 40, 28, 56, 96, 160, 9, 36, 48, 44, 80, 112]


@pytest.mark.parametrize("n", SIZES)
def test_is_its_matrix(n: int) -> None:
    x = np.random.default_rng(n).standard_normal((3, n))
    m = rotation.matrix(n)
    assert np.allclose(m @ m.T, np.eye(n), atol=1e-14)
    assert np.allclose(rotation.rotate(x), x @ m, atol=1e-13)
    assert np.allclose(rotation.unrotate(x), x @ m.T, atol=1e-13)


@pytest.mark.parametrize("n", [768, 1024, 1536, 2560, 5120, 8192])
def test_model_sizes_are_undone_in_f32(n: int) -> None:
    x = np.random.default_rng(n).standard_normal((2, 3, n)).astype(np.float32)
    y = rotation.rotate(x)
    assert y.dtype == np.float32
    assert np.abs(rotation.unrotate(y) - x).max() < 5e-6
    exact = rotation.rotate(x.astype(np.float64))
    assert np.abs(y - exact).max() < 1e-5
    assert np.allclose((exact**2).sum(-1), (x.astype(np.float64) ** 2).sum(-1))


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, (1, 1)),
        (64, (1, 64)),
        (768, (12, 64)),
        (2560, (20, 128)),
        (5120, (20, 256)),
        (28, (28, 1)),
        (3584, (28, 128)),
    ]
    + [(9, (1, 1)), (72, (1, 8)), (6, (1, 2)), (24, (12, 2))],
)
def test_sizes_are_split_as_documented(n: int, expected: tuple[int, int]) -> None:
    assert rotation.base_and_power(n) == expected


def test_twelve_and_twenty_are_not_symmetric() -> None:
    """What breaks code that rotates twice to undo (and would not show at powers of two)."""
    for n, symmetric in ((12, False), (20, False), (28, True), (1, True)):
        base = rotation.base_matrix(n)
        assert (base == base.T).all() == symmetric


def test_every_row_spreads_one_element() -> None:
    for n in (64, 96, 80, 56):
        assert np.allclose(np.abs(rotation.matrix(n)), n**-0.5)
