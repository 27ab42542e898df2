"""Quantize the rows of a weight side by side: they are independent, so each core takes slabs of them.

Slabs have a fixed size, so the codes do not depend on how many cores there are.  Inside a slab torch runs on one thread:
its own threads wait for each other at every small operation, which on a busy machine costs ten times what it saves.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from quamba_edge.quant.rtn import Codes

ROWS = 2048


def by_slabs(quantize: Callable[[Tensor], Codes], w: Tensor) -> Codes:
    """quantize(rows of w) for every slab of w (N, K), put together again."""
    if len(w) <= ROWS:
        return quantize(w)
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            made = list(pool.map(torch.no_grad()(quantize), w.split(ROWS)))
    finally:
        torch.set_num_threads(threads)
    codes, scales = torch.cat([m.codes for m in made]), torch.cat([m.scales for m in made])
    return Codes(codes, scales, made[0].bits, made[0].group)
