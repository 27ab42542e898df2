"""Round to nearest: weights to integer codes and scales, one row or one group of columns at a time.

4 bits: value = (code - 8) * scale with codes 0..15, one f16 scale for every `group` columns of a row.  The grid reaches one
step further down than up, so a scale may be negative: the extreme weight of a group then lies on the long side.
8 bits: value = code * scale with codes -127..127, one f32 scale a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quamba_edge.quant.recipe import Scheme

# Scales tried by the clip search, in units of (the extreme weight / -8): 1 puts it exactly on code 0, less clips it;
# the negative ones turn the grid round, 8/7 and 8/7.5 among them.
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, -8 / 7, -8 / 7.5, -1.0, -0.92, -0.84)
TINY = 1e-8


@dataclass(frozen=True)
class Codes:
    """A quantized weight (N, K): uint8 codes 0..15 or int8 codes, with scales (N, ceil(K/group)) f16 or (N) f32."""

    codes: Tensor
    scales: Tensor
    bits: int
    group: int

    def dequantize(self) -> Tensor:
        """The values that the codes stand for, f32 (N, K)."""
        if self.bits == 8:
            return self.codes.float() * self.scales[:, None]
        wide = self.scales.float().repeat_interleave(self.group, 1)[:, : self.codes.shape[1]]
        return (self.codes.float() - 8) * wide


def scale4(w: Tensor, importance: Tensor | None, search: bool) -> Tensor:
    """The f16 scale of one group for every row of w (N, g); importance (g) weighs the columns' squared errors."""
    extreme = w.gather(1, w.abs().argmax(1, keepdim=True))  # (N, 1), signed
    if not search:
        return (extreme.abs() / 7.5).clamp_min(TINY).half()
    best_error, best = None, None
    for clip in CLIPS:
        s = (extreme * (clip / -8)).half().float()
        s = torch.where(s == 0, TINY, s)
        miss = w - ((w / s).round() + 8).clamp(0, 15).sub(8) * s
        error = (
            (miss.square() * importance).sum(1, keepdim=True)
            if importance is not None
            else miss.square().sum(1, keepdim=True)
        )
        if best_error is None or best is None:
            best_error, best = error, s
        else:
            better = error < best_error
            best_error, best = torch.where(better, error, best_error), torch.where(better, s, best)
    assert best is not None
    return best.half()


def encode4(w: Tensor, scale: Tensor) -> Tensor:
    """Codes of w (N, g) on the grid of scale (N, 1); a zero scale gives code 8, which is zero."""
    s = scale.float()
    q = torch.where(s == 0, torch.zeros_like(w), w / torch.where(s == 0, 1.0, s))
    return (q.round() + 8).clamp(0, 15).to(torch.uint8)


def scale8(w: Tensor, grain: str = "channel", signed: bool = False) -> Tensor:
    """f32 scales (N) of 8-bit rows; `grain` "tensor" gives all rows the largest, `signed` takes max(w) for max|w|."""
    top = w.max(1).values if signed else w.abs().max(1).values
    if grain == "tensor":
        top = top.max().expand_as(top)
    return (top.clamp_min(TINY) / 127).float().clone()


def encode8(w: Tensor, scale: Tensor) -> Tensor:
    """int8 codes of w (N, g) with scales (N, 1)."""
    return (w / scale).round().clamp(-127, 127).to(torch.int8)


def quantize_rtn(
    w: Tensor,
    scheme: Scheme,
    importance: Tensor | None = None,
    *,
    search: bool = True,
    grain: str = "channel",
    signed: bool = False,
) -> Codes:
    """Codes of w (N, K), f32.  importance (K) is the mean square of each input, or None for all alike."""
    if scheme.bits == 8:
        scale = scale8(w, grain, signed)
        return Codes(encode8(w, scale[:, None]), scale, 8, scheme.group)
    codes, scales = [], []
    for k in range(0, w.shape[1], scheme.group):
        part = w[:, k : k + scheme.group]
        if signed:  # the published embedding scale: the signed maximum, which clips rows whose extreme is negative
            s = (part.max(1, keepdim=True).values / 8).clamp_min(TINY).half()
        else:
            s = scale4(part, None if importance is None else importance[k : k + scheme.group], search)
        codes.append(encode4(part, s))
        scales.append(s)
    return Codes(torch.cat(codes, 1), torch.cat(scales, 1), 4, scheme.group)
