"""Names and shapes of a Mamba2 checkpoint's tensors (mamba_ssm's names, which transformers kept)."""

from __future__ import annotations

from quamba_edge.models import stack
from quamba_edge.models.mamba2.config import Config


def expected(config: Config) -> dict[str, tuple[int, ...]]:
    """{canonical name: shape} of every tensor."""
    D, E, H, C, W = config.d_model, config.d_inner, config.n_heads, config.conv_channels, config.d_conv
    mixer: dict[str, tuple[int, ...]] = {
        "in_proj.weight": (E + C + H, D),  # z, [x B C], dt
        "conv1d.weight": (C, 1, W),
        "conv1d.bias": (C,),
        "dt_bias": (H,),
        "A_log": (H,),
        "D": (H,),
        "norm.weight": (E,),
        "out_proj.weight": (D, E),
    }
    return stack.expected(config, mixer)
