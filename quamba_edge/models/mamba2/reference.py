"""Mamba2 in torch: the definition that quantizer, kernels and bundles are measured against (Dao and Gu 2024).

A sequence goes through the chunked form (state-space duality, section 6), whose cost is matrix products; one token through the
recurrence (section 3).  They are the same function.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quamba_edge.models import stack
from quamba_edge.models.mamba2.config import Config
from quamba_edge.models.stack import CausalConv, Linear, RMSNorm, State, Tap, identity, parameter

CHUNK = 64  # positions that are computed as one matrix product; the result does not depend on it


class Mixer(nn.Module):
    """The layer's mixer; parameters named as in the checkpoint."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.in_proj = Linear(config.d_model, config.d_inner + config.conv_channels + config.n_heads)
        self.conv1d = CausalConv(config.conv_channels, config.d_conv)
        self.dt_bias = parameter(config.n_heads)
        self.A_log = parameter(config.n_heads)
        self.D = parameter(config.n_heads)
        self.norm = RMSNorm(config.d_inner, config.norm_eps, groups=config.ngroups)
        self.out_proj = Linear(config.d_inner, config.d_model)

    def forward(self, u: Tensor, state: State | None = None, tap: Tap = identity) -> tuple[Tensor, State]:
        """u (B, L, D), any L >= 1 → (B, L, D), and the state after the last position.

        Taps in docs/architecture.md, section 1.  What the tap makes of `state` is the state that is handed on; within this
        call the recurrence runs on the exact one.
        """
        c = self.config
        state = self.zero_state(u) if state is None else state
        z, xBC, dt = self.in_proj(tap("in_proj", u)).split([c.d_inner, c.conv_channels, c.n_heads], -1)
        z = tap("z", z)
        xBC, conv = self.conv1d(xBC, state.conv)
        x, B, C = (tap(name, part) for name, part in zip("xBC", self._split(xBC)))
        dt = self._dt(tap("dt", dt))  # (B, L, H)
        x = x.unflatten(-1, (c.n_heads, c.headdim))
        B, C = (v.unflatten(-1, (c.ngroups, c.d_state)) for v in (B, C))
        y, states = ssd(x, dt, -self.A_log.exp(), B, C, state.ssm)
        states = tap("state", states)
        y = tap("y", (y + self.D[:, None] * x).flatten(2))
        out = self.out_proj(tap("out_proj", self.norm(y * F.silu(z))))
        return out, State(conv, states[:, -1])

    def step(self, u: Tensor, state: State) -> tuple[Tensor, State]:
        """One position, u (B, D): h ← exp(dt A) h + dt x ⊗ B;  y = C · h + D x."""
        c = self.config
        z, xBC, dt = self.in_proj(u).split([c.d_inner, c.conv_channels, c.n_heads], -1)
        xBC, conv = self.conv1d.step(xBC, state.conv)
        x, B, C = self._split(xBC)
        dt = self._dt(dt)[:, :, None, None]  # (B, H, 1, 1)
        x = x.unflatten(-1, (c.n_heads, c.headdim))  # (B, H, P)
        per_group = c.n_heads // c.ngroups  # head h reads group h // per_group
        B, C = (v.unflatten(-1, (c.ngroups, c.d_state)).repeat_interleave(per_group, 1) for v in (B, C))  # (B, H, N)
        A = -self.A_log.exp()[:, None, None]
        ssm = (dt * A).exp() * state.ssm + dt * x[..., None] * B[:, :, None, :]  # (B, H, P, N)
        y = (ssm * C[:, :, None, :]).sum(-1) + self.D[:, None] * x
        return self.out_proj(self.norm(y.flatten(1) * F.silu(z))), State(conv, ssm)

    def zero_state(self, u: Tensor) -> State:
        """The state before the first position, for as many sequences as u has."""
        c, batch = self.config, u.shape[0]
        conv = u.new_zeros(batch, c.conv_channels, c.d_conv - 1)
        return State(conv, u.new_zeros(batch, c.n_heads, c.headdim, c.d_state))

    def _split(self, xBC: Tensor) -> tuple[Tensor, ...]:
        shared = self.config.ngroups * self.config.d_state
        return xBC.split([self.config.d_inner, shared, shared], -1)

    def _dt(self, raw: Tensor) -> Tensor:
        return F.softplus(raw + self.dt_bias).clamp(*self.config.dt_limit)


def ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """The SSM over a sequence: x (B, L, H, P), dt (B, L, H), A (H), B and C (B, L, g, N), initial (B, H, P, N).

    Returns y (B, L, H, P), without the D term, and the states at the chunks' ends (B, chunks, H, P, N).
    Below: b sequence, c chunk, i and j positions in it, g group, r head of the group, p, n.
    """
    length, groups = x.shape[1], B.shape[2]
    size = min(chunk, length)

    def chunks(v: Tensor) -> Tensor:  # a tail is filled with dt = 0, which adds nothing and decays nothing
        return F.pad(v, (0, 0) * (v.ndim - 2) + (0, -length % size)).unflatten(1, (-1, size))

    heads = (groups, -1)
    dA = chunks(dt * A).unflatten(-1, heads).permute(0, 1, 3, 4, 2)  # (b, c, g, r, i)
    dx = chunks(dt[..., None] * x).unflatten(3, heads)  # (b, c, j, g, r, p)
    B, C = chunks(B), chunks(C)  # (b, c, i, g, n)

    # Within a chunk: y_i = Σ_{j <= i} (C_i · B_j) exp(dA_{j+1} + ... + dA_i) dx_j
    within = decays(dA)  # (b, c, g, r, i, j)
    scores = torch.einsum("bcign,bcjgn->bcgij", C, B)[:, :, :, None] * within
    y = torch.einsum("bcgrij,bcjgrp->bcigrp", scores, dx)

    # From chunk to chunk: what each adds to the state by its end, then the recurrence over chunks.
    added = torch.einsum("bcgrj,bcjgn,bcjgrp->bcgrpn", within[..., -1, :], B, dx)
    total = dA.sum(-1).exp()  # (b, c, g, r)
    states = [initial.unflatten(1, heads)]
    for c in range(added.shape[1]):
        states.append(total[:, c, :, :, None, None] * states[-1] + added[:, c])
    starts, ends = torch.stack(states[:-1], 1), torch.stack(states[1:], 1)
    y = y + torch.einsum("bcign,bcgri,bcgrpn->bcigrp", C, dA.cumsum(-1).exp(), starts)
    return y.flatten(3, 4).flatten(1, 2)[:, :length], ends.flatten(2, 3)


def decays(dA: Tensor) -> Tensor:
    """exp(dA_{j+1} + ... + dA_i) for j <= i, else 0: (..., i) → (..., i, j).

    Each sum is taken by itself: differences of one running sum lose a small sum next to large ones.
    """
    size = dA.shape[-1]
    ones = torch.ones(size, size, dtype=torch.bool, device=dA.device)
    sums = dA[..., None].expand(*dA.shape, size).masked_fill(~ones.tril(-1), 0).cumsum(-2)
    return sums.masked_fill(~ones.tril(), -torch.inf).exp()


class Block(stack.Block):
    Mixer = Mixer


class LM(stack.LM):
    Block = Block
