"""Somebody else's implementations of the same models: transformers' classes, and loops over single numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch


def transformers_model(config: Any, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
    """transformers' model of our config, with tensors by canonical name."""
    import transformers

    common = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layer,
        "state_size": config.d_state,
        "conv_kernel": config.d_conv,
        "expand": config.d_inner // config.d_model,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": False,
    }
    if config.family == "mamba" and config.mixer_norm_eps is not None:
        own = {"time_step_rank": config.dt_rank, "mixer_rms_eps": config.mixer_norm_eps}
        model = transformers.FalconMambaForCausalLM(transformers.FalconMambaConfig(**own, **common))
    elif config.family == "mamba":
        model = transformers.MambaForCausalLM(transformers.MambaConfig(time_step_rank=config.dt_rank, **common))
    else:
        own = {"num_heads": config.n_heads, "head_dim": config.headdim, "n_groups": config.ngroups, "chunk_size": 16}
        limit = {"time_step_limit": tuple(config.dt_limit)}
        model = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**own, **limit, **common))
    renamed = {n.replace("backbone.embedding.", "backbone.embeddings."): t for n, t in weights.items()}
    model.load_state_dict(renamed)
    return model.to(dtype).eval()


@contextlib.contextmanager
def nothing_in_float32() -> Iterator[None]:
    """transformers computes norms, scan and final logits in float32 whatever the model's dtype; here those casts give float64."""
    with (
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
        mock.patch.object(torch, "float32", torch.float64),
    ):
        yield


def transformers_logits(
    config: Any, weights: dict[str, torch.Tensor], ids: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """(B, L) → (B, L, V), everything computed in dtype."""
    model = transformers_model(config, weights, dtype)
    if getattr(config, "ngroups", 1) > 1 and not hasattr(model.backbone.layers[0].mixer.norm, "group_size"):
        pytest.skip(
            "this transformers normalizes over all groups at once, unlike training: pip install -U transformers"
        )
    with torch.no_grad(), nothing_in_float32() if dtype == torch.float64 else contextlib.nullcontext():
        return model(ids, use_cache=False).logits


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest difference, in units of the largest exact value."""
    return float((found.double() - exact.double()).abs().max() / exact.double().abs().max())


def silu(v: Any) -> Any:
    return v / (1 + np.exp(-v))


def numpy_mixer(config: Any, weights: dict[str, np.ndarray], u: np.ndarray) -> np.ndarray:
    """One sequence u (L, D) through a mixer, by the papers' formulas, a number at a time where they are easily got wrong."""
    return (_mamba_loop if config.family == "mamba" else _mamba2_loop)(config, weights, u)


def _convolved(raw: np.ndarray, w: dict[str, np.ndarray], width: int) -> np.ndarray:
    """raw (L, C): y[t] = silu(b + Σ_k w[k] raw[t - (width - 1) + k]), what lies before the sequence being zero."""
    out = np.zeros_like(raw)
    for t in range(len(raw)):
        total = w["conv1d.bias"].copy()
        for k in range(width):
            if t - (width - 1) + k >= 0:
                total += w["conv1d.weight"][:, 0, k] * raw[t - (width - 1) + k]
        out[t] = silu(total)
    return out


def _mamba_loop(c: Any, w: dict[str, np.ndarray], u: np.ndarray) -> np.ndarray:
    E, N, R = c.d_inner, c.d_state, c.dt_rank
    xz = u @ w["in_proj.weight"].T
    x, z = _convolved(xz[:, :E], w, c.d_conv), xz[:, E:]
    h, out = np.zeros((E, N)), np.zeros_like(u)
    for t in range(len(u)):
        dbc = w["x_proj.weight"] @ x[t]
        low, B, C, y = dbc[:R], dbc[R : R + N], dbc[R + N :], np.zeros(E)
        if c.mixer_norm_eps is not None:
            low, B, C = (v / np.sqrt((v**2).mean() + c.mixer_norm_eps) for v in (low, B, C))
        dt = np.log1p(np.exp(w["dt_proj.weight"] @ low + w["dt_proj.bias"]))
        for e in range(E):
            h[e] = np.exp(dt[e] * -np.exp(w["A_log"][e])) * h[e] + dt[e] * B * x[t, e]
            y[e] = (h[e] @ C + w["D"][e] * x[t, e]) * silu(z[t, e])
        out[t] = w["out_proj.weight"] @ y
    return out


def _mamba2_loop(c: Any, w: dict[str, np.ndarray], u: np.ndarray) -> np.ndarray:
    E, N, P, g = c.d_inner, c.d_state, c.headdim, c.ngroups
    H, channels = E // P, E + 2 * g * N
    zxbcdt = u @ w["in_proj.weight"].T
    z, xbc, raw_dt = zxbcdt[:, :E], _convolved(zxbcdt[:, E : E + channels], w, c.d_conv), zxbcdt[:, E + channels :]
    state, out = np.zeros((H, P, N)), np.zeros_like(u)
    for t in range(len(u)):
        gated = np.zeros(E)
        for h in range(H):
            group = h // (H // g)
            B = xbc[t, E + group * N :][:N]
            C = xbc[t, E + g * N + group * N :][:N]
            dt = np.clip(np.log1p(np.exp(raw_dt[t, h] + w["dt_bias"][h])), *c.dt_limit)
            for p in range(P):
                e = h * P + p
                state[h, p] = np.exp(dt * -np.exp(w["A_log"][h])) * state[h, p] + dt * xbc[t, e] * B
                gated[e] = (state[h, p] @ C + w["D"][h] * xbc[t, e]) * silu(z[t, e])
        for group in range(g):
            part = slice(group * E // g, (group + 1) * E // g)
            gated[part] /= np.sqrt((gated[part] ** 2).mean() + c.norm_eps)
        out[t] = w["out_proj.weight"] @ (gated * w["norm.weight"])
    return out
