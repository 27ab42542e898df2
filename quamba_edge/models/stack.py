"""What surrounds the mixers, alike in both families (torch; the truth that everything else is measured against).

    residual = embedding[ids]
    for each block:  residual += mixer(RMSNorm(residual))
    logits = head @ RMSNorm(residual)

Everything is computed in the dtype of the parameters, float32 or float64.  Parameters carry the checkpoint's names, so that
its tensors load as a state dict, and want no gradients: this is for looking, not for training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from quamba_edge.checkpoint import Checkpoint

Tap = Callable[[str, Tensor], Tensor]


def identity(name: str, value: Tensor) -> Tensor:
    """The tap that neither looks nor changes."""
    return value


@dataclass
class State:
    """What one layer remembers.  conv (B, C, d_conv - 1): inputs before the convolution, most recent last; ssm: the
    mixer's own, (B, H, P, N) or (B, E, N).  A mixer returns a new one and leaves the given one as it was."""

    conv: Tensor
    ssm: Tensor


def parameter(*shape: int) -> nn.Parameter:
    """Unset memory: a state dict fills it."""
    return nn.Parameter(torch.empty(shape), requires_grad=False)


class Linear(nn.Module):
    """y = W x, W (N, K), without the initialization that nn.Linear spends seconds on."""

    def __init__(self, K: int, N: int, bias: bool = False):
        super().__init__()
        self.weight = parameter(N, K)
        self.bias = parameter(N) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis in `groups` equal parts."""

    def __init__(self, size: int, eps: float, groups: int = 1):
        super().__init__()
        self.weight = parameter(size)
        self.eps, self.groups = eps, groups

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (self.groups, -1))
        parts = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + self.eps)
        return parts.flatten(-2) * self.weight


class CausalConv(nn.Module):
    """Depthwise convolution over time, then SiLU.  Position t sees the inputs t - W + 1 .. t."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.weight = parameter(channels, 1, width)
        self.bias = parameter(channels)

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, L, C) after `before` (B, C, W - 1) → (B, L, C), and the last W - 1 inputs."""
        seen = torch.cat([before, x.transpose(1, 2)], dim=2)  # (B, C, W - 1 + L)
        y = F.conv1d(seen, self.weight, self.bias, groups=seen.shape[1])
        return F.silu(y).transpose(1, 2), seen[:, :, x.shape[1] :]

    def step(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """One position, as a weighted sum: x (B, C)."""
        seen = torch.cat([before, x[:, :, None]], dim=2)  # (B, C, W)
        return F.silu((seen * self.weight[:, 0]).sum(2) + self.bias), seen[:, :, 1:]


class Block(nn.Module):
    """residual + mixer(RMSNorm(residual)).  A family's Block says which mixer: `Mixer(config)`."""

    Mixer: ClassVar[type[nn.Module]]
    mixer: Any  # a family's own: forward(u, state, tap) and step(u, state)

    def __init__(self, config: Any):
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = type(self).Mixer(config)

    def forward(self, residual: Tensor, state: State | None = None, tap: Tap = identity) -> tuple[Tensor, State]:
        """residual (B, L, D), any L >= 1 → the same shape, and the state after its last position."""
        out, state = self.mixer(self.norm(residual), state, tap)
        return residual + out, state

    def step(self, residual: Tensor, state: State) -> tuple[Tensor, State]:
        """One position, residual (B, D), by the recurrence."""
        out, state = self.mixer.step(self.norm(residual), state)
        return residual + out, state

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, i: int, dtype: torch.dtype = torch.float32) -> Block:
        """Layer i, read now."""
        with torch.device("meta"):
            block = cls(checkpoint.config).eval()
        return _load(block, checkpoint, f"backbone.layers.{i}.", dtype)


class Backbone(nn.Module):
    layers: Any  # a ModuleList of Blocks

    def __init__(self, config: Any, block: Callable[[Any], Block]):
        super().__init__()
        self.embedding = Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(block(config) for _ in range(config.n_layer))
        self.norm_f = RMSNorm(config.d_model, config.norm_eps)


class Embedding(nn.Module):
    def __init__(self, rows: int, width: int):
        super().__init__()
        self.weight = parameter(rows, width)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class LM(nn.Module):
    """Token ids to logits over all vocabulary rows, padding included: ids from config.true_vocab_size up mean nothing."""

    Block: ClassVar[type[Block]]

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config, type(self).Block)
        self.lm_head = Linear(config.d_model, config.vocab_size)
        if config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def forward(
        self, ids: Tensor, states: list[State] | None = None, tap: Tap = identity
    ) -> tuple[Tensor, list[State]]:
        """ids (B, L) → logits (B, L, V), and a state per layer, from which a later call goes on."""
        residual, after = self.backbone.embedding(ids), []
        for i, block in enumerate(self.backbone.layers):
            residual, state = block(residual, None if states is None else states[i], tap)
            after.append(state)
        return self.lm_head(self.backbone.norm_f(residual)), after

    def step(self, ids: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """One token of each sequence, ids (B), by the recurrence → logits (B, V)."""
        residual, after = self.backbone.embedding(ids), []
        for block, state in zip(self.backbone.layers, states, strict=True):
            residual, state = block.step(residual, state)
            after.append(state)
        return self.lm_head(self.backbone.norm_f(residual)), after

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> LM:
        """The whole model in memory, tensors of any stored dtype converted."""
        with torch.device("meta"):
            lm = cls(checkpoint.config).eval()
        return _load(lm, checkpoint, "", dtype)


def _load(module: Any, checkpoint: Checkpoint, prefix: str, dtype: torch.dtype) -> Any:
    """Fill a module made on the meta device, one tensor at a time: twice the model is never in memory."""
    for name, holder in list(module.named_modules()):
        for leaf in list(holder._parameters):
            if holder._parameters[leaf] is not None and holder._parameters[leaf].is_meta:
                full = f"{prefix}{name}.{leaf}" if name else f"{prefix}{leaf}"
                if full == "lm_head.weight" and checkpoint.config.tie_embeddings:
                    holder.weight = module.backbone.embedding.weight  # loaded before: one matrix stays one
                else:
                    setattr(holder, leaf, nn.Parameter(checkpoint.tensor(full).to(dtype), requires_grad=False))
    return module


def expected(config: Any, leaves: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """{canonical tensor name: shape} of a model whose mixer has `leaves`, in the order of the layers."""
    V, D = config.vocab_size, config.d_model
    found: dict[str, tuple[int, ...]] = {"backbone.embedding.weight": (V, D)}
    for i in range(config.n_layer):
        found[f"backbone.layers.{i}.norm.weight"] = (D,)
        found |= {f"backbone.layers.{i}.mixer.{leaf}": shape for leaf, shape in leaves.items()}
    return found | {"backbone.norm_f.weight": (D,), "lm_head.weight": (V, D)}
