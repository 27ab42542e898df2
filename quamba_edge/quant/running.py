"""Run one layer while it is being quantized: what its linears are fed, here and in the source, and what comes out.

A layer is quantized in two steps, so that the later linears see what the first one has become.  in_proj's inputs need no run
of the layer: they are the normed stream.  The other linears are observed with in_proj already quantized, and its input
rounded as the board will round it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from quamba_edge import models
from quamba_edge.calibrate.observe import FakeQuant, Lack
from quamba_edge.quant.transform import Weights

BATCH_TOKENS = 4096  # tokens that run through a layer at once; at 8B their in_proj output is 300 MB


def make_block(family: str, config: Any, weights: Weights) -> Any:
    """The reference block on these very tensors: no copies."""
    with torch.device("meta"):
        block = models.find(family, "reference").Block(config).eval()
    block.load_state_dict(weights, assign=True)
    return block


def batches(stream: Tensor) -> Iterator[slice]:
    """The windows of stream (S, L, D), a few at a time."""
    rows = max(1, BATCH_TOKENS // stream.shape[1])
    return (slice(a, a + rows) for a in range(0, len(stream), rows))


def run_layer(block: Any, stream: Tensor, tap: Callable[[str, Tensor], Tensor], out: Tensor | None = None) -> None:
    """stream (S, L, D) through the block; results go to `out` (which may be stream) if given."""
    for some in batches(stream):
        result, _ = block(stream[some], None, tap)
        if out is not None:
            out[some] = result


def observe_in_proj(block: Any, stream: Tensor, source: Tensor | None, lack: Lack) -> None:
    """Show `lack` the inputs of in_proj: of the quantized model's stream, and of the source's where there is one."""
    for some in batches(stream):
        lack.quantized("in_proj", block.norm(stream[some]))
        if source is not None:
            lack.source("in_proj", block.norm(source[some]))


def observe_rest(
    block: Any, exact_block: Any, stream: Tensor, source: Tensor | None, lack: Lack, scales: dict[str, Tensor]
) -> None:
    """Show `lack` everything else, in_proj being quantized in `block` and fed by `scales`; `source`, which runs through
    `exact_block`, becomes what the source makes of it."""
    as_fed = FakeQuant(lambda x: x, scales)

    def tap(name: str, value: Tensor) -> Tensor:
        return as_fed(name, value) if name == "in_proj" else lack.quantized(name, value)

    for some in batches(stream):
        block(stream[some], None, tap)
        if source is not None:
            source[some], _ = exact_block(source[some], None, lack.source)
