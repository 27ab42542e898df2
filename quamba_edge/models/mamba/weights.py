"""Names and shapes of a Mamba1 checkpoint's tensors (mamba_ssm's names, which transformers kept)."""

from __future__ import annotations

from quamba_edge.models import stack
from quamba_edge.models.mamba.config import Config


def expected(config: Config) -> dict[str, tuple[int, ...]]:
    """{canonical name: shape} of every tensor."""
    D, E, N, R, W = config.d_model, config.d_inner, config.d_state, config.dt_rank, config.d_conv
    mixer: dict[str, tuple[int, ...]] = {
        "in_proj.weight": (2 * E, D),  # x, z
        "conv1d.weight": (E, 1, W),
        "conv1d.bias": (E,),
        "x_proj.weight": (R + 2 * N, E),  # low-rank dt, B, C
        "dt_proj.weight": (E, R),
        "dt_proj.bias": (E,),
        "A_log": (E, N),
        "D": (E,),
        "out_proj.weight": (D, E),
    }
    return stack.expected(config, mixer)
