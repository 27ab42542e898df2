"""The torch transform is the product with the explicit matrix, at every published dimension."""

import numpy as np
import pytest
import torch

from quamba_edge import rotation
from quamba_edge.quant.hadamard import rotate, unrotate

PUBLISHED = [768, 1024, 1536, 2048, 2560, 3072, 4096, 5120, 8192]
SMALL = [1, 2, 8, 64, 12, 24, 96, 20, 40, 160, 28, 56, 112, 36, 72]


@pytest.mark.parametrize("n", SMALL + [768, 2560, 3584])
def test_is_the_product_with_the_explicit_matrix(n):
    x = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    matrix = torch.from_numpy(rotation.matrix(n))
    assert torch.allclose(rotate(x), x @ matrix, atol=1e-12)
    assert torch.allclose(unrotate(x), x @ matrix.T, atol=1e-12)


@pytest.mark.parametrize("n", PUBLISHED)
def test_numpy_and_torch_agree_and_undo(n):
    x = torch.randn(2, 3, n, generator=torch.Generator().manual_seed(n))
    assert np.allclose(rotate(x).numpy(), rotation.rotate(x.numpy()), atol=2e-5)
    assert torch.allclose(unrotate(rotate(x)), x, atol=2e-5)


def test_twice_is_not_the_identity_where_the_base_is_skew():
    x = torch.randn(1, 2560, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(rotate(rotate(x)), x, atol=0.1)


def test_spreads_an_outlier_evenly():
    x = torch.zeros(5120)
    x[17] = 100
    assert torch.allclose(rotate(x).abs(), torch.full((5120,), 100 / 5120**0.5), atol=1e-4)
