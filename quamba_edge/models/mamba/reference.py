"""Mamba1 in torch: the definition that quantizer, kernels and bundles are measured against (Gu and Dao 2023, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quamba_edge.models import stack
from quamba_edge.models.mamba.config import Config
from quamba_edge.models.stack import CausalConv, Linear, State, Tap, identity, parameter

CHUNK = 64  # positions whose (E, N) decays are in memory at once; the result does not depend on it


class Mixer(nn.Module):
    """The layer's mixer; parameters named as in the checkpoint."""

    def __init__(self, config: Config):
        super().__init__()
        D, E, N, R = config.d_model, config.d_inner, config.d_state, config.dt_rank
        self.config = config
        self.in_proj = Linear(D, 2 * E)
        self.conv1d = CausalConv(E, config.d_conv)
        self.x_proj = Linear(E, R + 2 * N)
        self.dt_proj = Linear(R, E, bias=True)
        self.A_log = parameter(E, N)
        self.D = parameter(E)
        self.out_proj = Linear(E, D)

    def forward(self, u: Tensor, state: State | None = None, tap: Tap = identity) -> tuple[Tensor, State]:
        """u (B, L, D), any L >= 1 → (B, L, D), and the state after the last position.

        Taps in docs/architecture.md, section 1.  What the tap makes of `state` is the state that is handed on; within this
        call the recurrence runs on the exact one.
        """
        state = self.zero_state(u) if state is None else state
        x, z = self.in_proj(tap("in_proj", u)).chunk(2, -1)
        z = tap("z", z)
        x, conv = self.conv1d(x, state.conv)
        x = tap("x", x)
        low, B, C = self._split(self.x_proj(x))  # normalized where the model is a Falcon-Mamba
        B, C = tap("B", B), tap("C", C)
        assert self.dt_proj.bias is not None
        dt = tap("dt", F.linear(tap("dt_proj", low), self.dt_proj.weight))
        y, states = scan(x, F.softplus(dt + self.dt_proj.bias), -self.A_log.exp(), B, C, state.ssm)
        states = tap("state", states)
        y = tap("y", (y + self.D * x) * F.silu(z))
        return self.out_proj(tap("out_proj", y)), State(conv, states[:, -1])

    def step(self, u: Tensor, state: State) -> tuple[Tensor, State]:
        """One position, u (B, D): h ← exp(dt A) h + dt x ⊗ B;  y = C · h + D x."""
        x, z = self.in_proj(u).chunk(2, -1)
        x, conv = self.conv1d.step(x, state.conv)
        low, B, C = self._split(self.x_proj(x))
        dt = F.softplus(self.dt_proj(low))[:, :, None]  # (B, E, 1)
        ssm = (dt * -self.A_log.exp()).exp() * state.ssm + dt * x[:, :, None] * B[:, None, :]  # (B, E, N)
        y = (ssm * C[:, None, :]).sum(-1) + self.D * x
        return self.out_proj(y * F.silu(z)), State(conv, ssm)

    def zero_state(self, u: Tensor) -> State:
        """The state before the first position, for as many sequences as u has."""
        c, batch = self.config, u.shape[0]
        return State(u.new_zeros(batch, c.d_inner, c.d_conv - 1), u.new_zeros(batch, c.d_inner, c.d_state))

    def _split(self, projected: Tensor) -> tuple[Tensor, ...]:
        parts = projected.split([self.config.dt_rank, self.config.d_state, self.config.d_state], -1)
        eps = self.config.mixer_norm_eps
        if eps is None:
            return tuple(parts)
        return tuple(v * torch.rsqrt(v.square().mean(-1, keepdim=True) + eps) for v in parts)


def scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """The selective scan, position by position: x and dt (B, L, E), A (E, N), B and C (B, L, N), initial (B, E, N).

    Returns y (B, L, E), without the D term, and the states at the chunks' ends (B, chunks, E, N).
    """
    dx = dt * x
    h, ends, ys = initial, [], []
    for at in range(0, x.shape[1], chunk):
        part = slice(at, at + chunk)
        decay = (dt[:, part, :, None] * A).exp_()  # (B, chunk, E, N)
        states = dx[:, part, :, None] * B[:, part, None, :]  # what is added, until a state is made of it
        for ratio, state in zip(decay.unbind(1), states.unbind(1)):
            h = state.addcmul_(ratio, h)  # in place: large memory that is asked for anew costs more than the arithmetic
        ys.append((states @ C[:, part, :, None]).squeeze(-1))
        ends.append(h)
    return torch.cat(ys, 1), torch.stack(ends, 1)


class Block(stack.Block):
    Mixer = Mixer


class LM(stack.LM):
    Block = Block
