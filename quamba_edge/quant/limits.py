"""How far numbers may go before f16 or f32 cannot hold them: told at the layer where it is seen, by name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from quamba_edge.errors import BadCheckpoint, BadRecipe
from quamba_edge.quant.recipe import Scheme

F16 = 65504.0  # its largest number
SUMMABLE = 1e15  # inputs up to here have squares that still add up in f32, over any calibration


def check_input(name: str, peak: float, act: int) -> None:
    """BadRecipe or BadCheckpoint where a linear's inputs, in magnitude up to `peak`, are beyond what it is fed in."""
    if act == 16 and F16 < peak <= SUMMABLE:
        raise BadRecipe(f"{name}: its input reaches {peak:.3g}, f16 ends at {F16:g}: take 8-bit activations (act 8)")
    if not peak <= SUMMABLE:  # a NaN, too
        raise BadCheckpoint(
            f"{name}: its input reaches {peak:.3g}, expected less than {SUMMABLE:g}: the checkpoint's weights are too large"
        )


def check_observed(i: int, peak: Mapping[str, Tensor], schemes: Mapping[str, Scheme]) -> None:
    """The same for those sites of layer i, by an Observer's peaks."""
    for name, scheme in schemes.items():
        check_input(f"layers.{i}.{name}", float(peak["x" if name == "x_proj" else name].max()), scheme.act)


def check_state(i: int, peak: Tensor) -> None:
    """BadCheckpoint where the state of layer i, in magnitude up to `peak`, is beyond f16, in which it is kept."""
    state = float(peak.max())
    if not state <= F16:
        raise BadCheckpoint(
            f"layers.{i}: its SSM state reaches {state:.3g}, f16 ends at {F16:g}: the checkpoint's weights are too large"
        )
