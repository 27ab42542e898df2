"""Slabs of rows give what the whole gives, and leave torch's threads as they were."""

import torch

from quamba_edge.quant.recipe import Scheme
from quamba_edge.quant.rtn import quantize_rtn
from quamba_edge.quant.slabs import ROWS, by_slabs


def test_slabs_are_put_together_in_order():
    w = torch.randn(2 * ROWS + 5, 16, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    for scheme in (Scheme(4, group=8), Scheme(8)):
        whole, pieces = quantize_rtn(w, scheme), by_slabs(lambda rows, s=scheme: quantize_rtn(rows, s), w)
        assert torch.equal(whole.codes, pieces.codes) and torch.equal(whole.scales, pieces.scales)
    assert torch.get_num_threads() == threads
