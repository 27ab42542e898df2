"""Small random models in f64 numpy: what they compute, by the papers' formulas, and the bundle that stands for them.

Nothing here uses the ops, the programs or the quantizer; norm weights are already folded, but for the final one of a tied model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from quamba_edge import models, rotation
from tests.runtime.memory import MemoryBundle

Array = np.ndarray
VOCAB, ROWS = 60, 64


@dataclass
class Model:
    family: str
    config: Any
    ends: dict[str, Array]  # embedding (V, D), norm_f (D), head (V, D)
    layers: list[dict[str, Array]]


def random_model(family: str, *, tied: bool = True, ngroups: int = 2, d_model: int = 48, seed: int = 0) -> Model:
    """Two layers, 60 ids in 64 rows; dt_limit bites in Mamba2."""
    rng = np.random.default_rng(seed)
    sizes = {"d_model": d_model, "n_layer": 2, "vocab_size": ROWS, "true_vocab_size": VOCAB, "tie_embeddings": tied}
    sizes |= {"d_inner": 2 * d_model, "d_conv": 4, "norm_eps": 1e-5}
    if family == "mamba2":
        sizes |= {"d_state": 16, "headdim": 8, "ngroups": ngroups, "dt_limit": (0.0, 0.25)}
    else:
        sizes |= {"d_state": 8, "dt_rank": 3}
    c = models.find(family, "config").Config(**sizes)
    D, E, N = c.d_model, c.d_inner, c.d_state

    def matrix(n: int, k: int) -> Array:
        return rng.normal(0, k**-0.5, (n, k))

    layers = []
    for _ in range(c.n_layer):
        if family == "mamba2":
            H, C = E // c.headdim, E + 2 * c.ngroups * N
            layer = {"in_proj": matrix(E + C + H, D), "A": -rng.uniform(1, 8, H)}
        else:
            H, C = E, E
            layer = {"in_proj": matrix(2 * E, D), "A": -np.tile(np.arange(1.0, N + 1), (E, 1))}
            layer |= {"x_proj": matrix(c.dt_rank + 2 * N, E), "dt_proj": matrix(E, c.dt_rank)}
        layer |= {"conv.weight": rng.normal(0, 0.5, (C, c.d_conv)), "conv.bias": rng.normal(0, 0.1, C)}
        layer |= {"D": rng.normal(1, 0.2, H), "dt_bias": rng.uniform(-4, 0, H), "out_proj": matrix(D, E)}
        layers.append(layer)
    ends = {"embedding": rng.normal(0, 1, (ROWS, D)), "norm_f": rng.uniform(0.5, 1.5, D) if tied else np.ones(D)}
    if not tied:
        ends["head"] = matrix(ROWS, D)
    return Model(family, c, ends, layers)


def silu(v: Array) -> Array:
    return v / (1 + np.exp(-v))


def normed(v: Array, eps: float) -> Array:
    return v / np.sqrt((v**2).mean(-1, keepdims=True) + eps)


def forward(model: Model, tokens: list[int], tap: Callable[[str, Array], None] = lambda name, value: None) -> Array:
    """Logits (T, V) of a text; `tap` sees what enters each linear, what leaves the convolution, and the states."""
    c = model.config
    stream = model.ends["embedding"][tokens]
    for i, w in enumerate(model.layers):
        u = normed(stream, c.norm_eps)
        tap(f"layers.{i}.in_proj", u)
        mixer = _mamba2 if model.family == "mamba2" else _mamba
        y = mixer(c, w, u @ w["in_proj"].T, lambda name, value, i=i: tap(f"layers.{i}.{name}", value))
        tap(f"layers.{i}.out_proj", y)
        stream = stream + y @ w["out_proj"].T
    x = normed(stream, c.norm_eps) * model.ends["norm_f"]
    tap("head", x)
    return x @ model.ends.get("head", model.ends["embedding"]).T


def _conv(w: dict[str, Array], x: Array) -> Array:
    width = w["conv.weight"].shape[1]
    past = np.concatenate([np.zeros((width - 1, x.shape[1])), x])
    return silu(w["conv.bias"] + sum(w["conv.weight"][:, k] * past[k : k + len(x)] for k in range(width)))


def _mamba2(c: Any, w: dict[str, Array], zxbcdt: Array, tap: Callable[[str, Array], None]) -> Array:
    E, N, g, P = c.d_inner, c.d_state, c.ngroups, c.headdim
    z, xbc, dt = np.split(zxbcdt, [E, 2 * E + 2 * g * N], axis=1)
    xbc = _conv(w, xbc)
    tap("conv", xbc)
    d = np.clip(np.log1p(np.exp(dt + w["dt_bias"])), *c.dt_limit)
    H, state, y = E // P, np.zeros((E // P, P, N)), np.zeros((len(z), E))
    for t in range(len(z)):
        for h in range(H):
            G = h // (H // g)
            x = xbc[t, h * P : (h + 1) * P]
            B, C = xbc[t, E + G * N : E + (G + 1) * N], xbc[t, E + (g + G) * N : E + (g + G + 1) * N]
            state[h] = np.exp(d[t, h] * w["A"][h]) * state[h] + d[t, h] * np.outer(x, B)
            y[t, h * P : (h + 1) * P] = state[h] @ C + w["D"][h] * x
        tap("state", state.reshape(g, -1, N))
    y = y * silu(z)
    return np.concatenate([normed(part, c.norm_eps) for part in np.split(y, g, axis=1)], axis=1)


def _mamba(c: Any, w: dict[str, Array], xz: Array, tap: Callable[[str, Array], None]) -> Array:
    E, N, R = c.d_inner, c.d_state, c.dt_rank
    x = _conv(w, xz[:, :E])
    tap("conv", x)
    low, B, C = np.split(x @ w["x_proj"].T, [R, R + N], axis=1)
    tap("dt_proj", low)
    d = np.log1p(np.exp(low @ w["dt_proj"].T + w["dt_bias"]))
    state, y = np.zeros((E, N)), np.zeros((len(x), E))
    for t in range(len(x)):
        state = np.exp(d[t][:, None] * w["A"]) * state + (d[t] * x[t])[:, None] * B[t]
        tap("state", state[None])
        y[t] = state @ C[t] + w["D"] * x[t]
    return y * silu(xz[:, E:])


def bundle_of(model: Model, bits: int = 16, act: int = 16, *, rotate: bool = False, dt_act: int = 16) -> MemoryBundle:
    """The model in a bundle: rotated where asked, rounded to nearest, activation scales from what a random text shows."""
    c, turn = model.config, rotation.rotate if rotate else (lambda v: v)
    peaks: dict[str, Array] = {}

    def observe(name: str, value: Array) -> None:
        # Linears read the rotated form; what the convolution writes and dt_proj reads is not rotated.
        if name.endswith(("in_proj", "out_proj", "head")):
            found = np.abs(turn(value)).max()
        else:
            found = np.abs(value).max(0) if name.endswith("conv") else np.abs(value)
        peaks[name] = np.maximum(peaks.get(name, 0), found.max() if name.endswith("dt_proj") else found)

    forward(model, np.random.default_rng(99).integers(0, VOCAB, 100).tolist(), observe)
    b = MemoryBundle(family=model.family, config=c.to_json(), rotate=rotate, vocab_size=VOCAB, recipe={})

    def vector(name: str, value: Any) -> None:
        b.put(name, np.atleast_1d(np.asarray(value, np.float32)))

    def site(name: str, w: Array, act: int = act, scale: Any = None) -> None:
        b.put_site(name, w, bits, act)
        if act == 8:
            vector(f"{name}.in_scale", peaks[name] / 127 if scale is None else scale)

    site("embedding", turn(model.ends["embedding"]), act=16)
    for i, w in enumerate(model.layers):
        at, x_scale = f"layers.{i}", peaks[f"layers.{i}.conv"] / 127
        site(f"{at}.in_proj", turn(w["in_proj"]))
        site(f"{at}.out_proj", turn(turn(w["out_proj"]).T).T)
        if model.family == "mamba":
            site(f"{at}.x_proj", w["x_proj"] * (x_scale if act == 8 else 1), scale=1.0)
            site(f"{at}.dt_proj", w["dt_proj"], act=dt_act)
        for name in ("A", "D", "dt_bias"):
            vector(f"{at}.ssm.{name}", w[name])
        for name in ("conv.weight", "conv.bias"):
            vector(f"{at}.{name}", w[name])
        if act == 8:
            vector(f"{at}.conv.out_scale", x_scale)
        state = peaks[f"{at}.state"]  # (g, rows, N)
        rows = state.max(2, keepdims=True)
        vector(f"{at}.ssm.state_rows", rows.reshape(-1) / 127)
        vector(f"{at}.ssm.state_cols", (state / rows).max(1).reshape(-1) * 1.05)
    if "head" in model.ends:
        site("head", turn(model.ends["head"]))
    else:
        vector("norm_f.weight", model.ends["norm_f"])
        b.manifest.sites["head"] = {**b.manifest.sites["embedding"], "act": act}
        if act == 8:
            vector("head.in_scale", peaks["head"] / 127)
    return b
