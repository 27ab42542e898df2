"""After GPTQ: better scales for the codes as they are, then better codes for the scales, in turns.

GPTQ fixes each column once, and finds a group's scale before it knows the group's codes.  Both can be improved on the same
loss, trace((w - v) H (w - v)^T) over rows, at no cost in bytes:

scales  given a row's codes the loss is a quadratic in its K/G scales: solve for them
codes   column after column, move each code to where the loss is least while all others stay (coordinate descent)

Rows are independent.  A row part of PART rows takes some five copies of itself in f32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from quamba_edge.quant.rtn import Codes

BLOCK = 128  # columns whose changes reach the other columns' slopes at once
PART = 512  # rows at a time: 16 MB a copy at K = 8192


def damped(hessian: Tensor, damp: float = 0.01) -> Tensor:
    """hessian (K, K) with the damping that `gptq.inverse_factor` adds; changes its argument, which may be large."""
    hessian.diagonal().add_(damp * hessian.diagonal().mean().clamp_min(1e-30))
    return hessian


def refine(w: Tensor, made: Codes, hessian: Tensor, rounds: int) -> Codes:
    """4-bit codes of w (N, K) after `rounds` of both steps; hessian (K, K) f32, `damped`."""
    codes, scales = [], []
    for rows, q, s in zip(w.split(PART), made.codes.split(PART), made.scales.split(PART), strict=True):
        steps = q.float() - 8
        for _ in range(rounds):
            s = best_scales(rows, steps, s, hessian, made.group)
            descend(rows, steps, s, hessian, made.group)
        codes.append((steps + 8).to(torch.uint8))
        scales.append(s)
    return Codes(torch.cat(codes), torch.cat(scales), made.bits, made.group)


def best_scales(w: Tensor, steps: Tensor, scales: Tensor, hessian: Tensor, group: int) -> Tensor:
    """The f16 scales (N, K/G) of least loss for codes that stand `steps` (N, K) from zero; a group of zeros keeps its own."""
    count = scales.shape[1]
    fill = count * group - w.shape[1]
    wanted = F.pad((w @ hessian).mul_(steps), (0, fill)).unflatten(1, (count, -1)).sum(2)  # (N, groups)
    curvature = torch.empty(len(w), count, count)
    for g in range(count):
        part = slice(g * group, (g + 1) * group)
        reach = (steps[:, part] @ hessian[part]).mul_(steps)
        curvature[:, g] = F.pad(reach, (0, fill)).unflatten(1, (count, -1)).sum(2)
    diagonal = curvature.diagonal(dim1=1, dim2=2)
    diagonal.add_(torch.where(diagonal > 0, 1e-6 * diagonal, 1.0))
    found = torch.linalg.solve(curvature.double(), wanted.double()).to(scales.dtype)
    return torch.where(torch.isfinite(found) & (found != 0), found, scales)


def descend(w: Tensor, steps: Tensor, scales: Tensor, hessian: Tensor, group: int) -> None:
    """One pass of coordinate descent over the columns of `steps` (N, K), in place."""
    scale = scales.float().repeat_interleave(group, 1)[:, : w.shape[1]]
    divisor = torch.where(scale == 0, torch.inf, scale)
    slope = (w - steps * scale) @ hessian  # minus half the derivative of the loss by each value
    for start in range(0, w.shape[1], BLOCK):
        stop = min(start + BLOCK, w.shape[1])
        here, near = slope[:, start:stop].clone(), hessian[start:stop, start:stop]
        change = torch.empty_like(here)
        for j in range(stop - start):
            k = slice(start + j, start + j + 1)
            best = (steps[:, k] + here[:, j : j + 1] / near[j, j] / divisor[:, k]).round_().clamp_(-8, 7)
            change[:, j : j + 1] = (best - steps[:, k]) * scale[:, k]
            steps[:, k] = best
            here.addmm_(change[:, j : j + 1], near[j : j + 1], alpha=-1)
        slope[:, stop:].addmm_(change, hessian[start:stop, stop:], alpha=-1)
