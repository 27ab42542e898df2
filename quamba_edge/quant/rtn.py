"""Round to nearest: weights to integer codes and scales, one row or one group of columns at a time.

4 bits: value = (code - 8) * scale with codes 0..15, one f16 scale for every `group` columns of a row.  The grid reaches one
step further down than up, so a scale may be negative: the extreme weight of a group then lies on the long side.
8 and 6 bits: value = code * scale with codes -127..127 or -31..31, one f32 scale a row; at 6 bits the scale is searched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quamba_edge.quant.recipe import Scheme

# Scales tried by the clip search, in units of (the extreme weight / -8): 1 puts it exactly on code 0, less clips it;
# the negative ones turn the grid round, 8/7 and 8/7.5 among them.
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, -8 / 7, -8 / 7.5, -1.0, -0.92, -0.84)
CLIPS6 = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # likewise for rows of 6 bits, in units of (the largest magnitude / 31)
LARGEST = {8: 127, 6: 31}  # code, by bits
TINY = 1e-8


@dataclass(frozen=True)
class Codes:
    """A quantized weight (N, K): uint8 codes 0..15 with scales (N, ceil(K/group)) f16, or int8 codes with scales (N) f32."""

    codes: Tensor
    scales: Tensor
    bits: int
    group: int

    def dequantize(self, out: Tensor | None = None) -> Tensor:
        """The values that the codes stand for, f32 (N, K); in `out` where that is given, so that no other copy is made."""
        out = (torch.empty(self.codes.shape) if out is None else out).copy_(self.codes)
        if self.bits > 4:
            return out.mul_(self.scales[:, None])
        out.sub_(8)
        for part, scale in zip(out.split(self.group, 1), self.scales.float().unbind(1), strict=True):
            part.mul_(scale[:, None])
        return out


def scale4(w: Tensor, importance: Tensor | None, search: bool) -> Tensor:
    """The f16 scale of one group for every row of w (N, g); importance (g) weighs the columns' squared errors."""
    if not search:
        return (w.abs().amax(1, keepdim=True) / 7.5).clamp_min(TINY).half()
    return _search(w, torch.ones(w.shape[1]) if importance is None else importance)


def _search(w: Tensor, importance: Tensor) -> Tensor:
    """The best of CLIPS for each row, by the weighted squared error of what the f16 scale makes of it."""
    extreme = w.gather(1, w.abs().argmax(1, keepdim=True))  # (N, 1), signed
    scales = (extreme * (torch.tensor(CLIPS) / -8)).half()  # (N, clips)
    steps = scales.float()
    steps = torch.where(steps == 0, TINY, steps)
    miss, errors = torch.empty_like(w), []
    for i in range(len(CLIPS)):
        step = steps[:, i : i + 1]
        torch.div(w, step, out=miss).round_().clamp_(-8, 7)
        torch.addcmul(w, miss, step, value=-1, out=miss)
        errors.append(miss.square_() @ importance)
    return scales.gather(1, torch.stack(errors, 1).argmin(1, keepdim=True))


def encode4(w: Tensor, scale: Tensor) -> Tensor:
    """Codes of w (N, g) on the grid of scale (N, 1); a zero scale gives code 8, which is zero."""
    s = scale.float()
    q = torch.where(s == 0, torch.zeros_like(w), w / torch.where(s == 0, 1.0, s))
    return (q.round() + 8).clamp(0, 15).to(torch.uint8)


def scale8(w: Tensor, peak: Tensor | None = None, signed: bool = False) -> Tensor:
    """f32 scales (N) of 8-bit rows: max|w| / 127 of the row; of `peak` for all if given; of max(w) if `signed`."""
    top = w.max(1).values if signed else w.abs().max(1).values
    top = top if peak is None else peak.expand_as(top)
    return (top.clamp_min(TINY) / 127).float()


def encode8(w: Tensor, scale: Tensor, bits: int = 8) -> Tensor:
    """int8 codes of w (N, g) with scales (N, 1), as many as `bits` have."""
    most = LARGEST[bits]
    return (w / scale).round().clamp(-most, most).to(torch.int8)


def scale_row(w: Tensor, bits: int, peak: Tensor | None = None, signed: bool = False, search: bool = True) -> Tensor:
    """f32 scales (N) of 8-bit or 6-bit rows; at 6 bits the share of CLIPS6 of the largest that leaves the least squared error."""
    full = scale8(w, peak, signed) * (127 / LARGEST[bits])
    if bits == 8 or not search:
        return full
    tries = full[:, None] * torch.tensor(CLIPS6)
    errors = [(w - encode8(w, s[:, None], bits) * s[:, None]).square().sum(1) for s in tries.unbind(1)]
    return tries.gather(1, torch.stack(errors, 1).argmin(1, keepdim=True))[:, 0]


def quantize_rtn(
    w: Tensor,
    scheme: Scheme,
    importance: Tensor | None = None,
    *,
    search: bool = True,
    peak: Tensor | None = None,
    signed: bool = False,
) -> Codes:
    """Codes of w (N, K), f32.  importance (K) is the mean square of each input, or None for all alike;
    peak: a magnitude that all 8-bit rows share a scale for, or None for their own."""
    if scheme.bits > 4:
        scale = scale_row(w, scheme.bits, peak, signed, search)
        return Codes(encode8(w, scale[:, None], scheme.bits), scale, scheme.bits, scheme.group)
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
