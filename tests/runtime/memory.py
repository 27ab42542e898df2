"""A bundle in memory, and small random models in it: what Engine and backends need, without a file.

The weights are random and rounded to the nearest code here, so that nothing of the quantizer is needed.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from quamba_edge import layouts, models, rotation

LAYOUT = {(4, "codes"): "n16k8", (4, "scales"): "n16", (8, "codes"): "n16k4"}


class MemoryBundle:
    """Has `manifest`, `tensor`, `logical` and `rows` as bundle/reader.py does; fill it with `put` and `put_site`."""

    def __init__(self, **manifest: Any):
        self.manifest = SimpleNamespace(tensors={}, sites={}, **manifest)
        self._stored: dict[str, np.ndarray] = {}

    def put(self, name: str, array: np.ndarray, layout: str = "row", dtype: str | None = None) -> None:
        dtype = dtype or next(d for d, t in layouts.DTYPES.items() if t == array.dtype)
        self._stored[name] = layouts.pack(layout, array, dtype)
        self.manifest.tensors[name] = SimpleNamespace(dtype=dtype, shape=array.shape, layout=layout)

    def put_site(self, name: str, w: np.ndarray, bits: int, act: int, group: int = 32) -> np.ndarray:
        """Round w (N, K) to its codes and store it; the weight, f64, that they stand for."""
        N, K = w.shape
        self.manifest.sites[name] = dict(N=N, K=K, bits=bits, group=group, act=act, method="rtn")
        if bits == 16:
            half = w.astype(np.float16)
            self.put(f"{name}.weight", half)
            return half.astype(np.float64)
        if bits == 8:
            scales = (np.abs(w).max(1) / 127 + 1e-9).astype(np.float32)
            codes = np.clip(np.rint(w / scales[:, None]), -127, 127).astype(np.int8)
            self.put(f"{name}.codes", codes, "n16k4")
            self.put(f"{name}.scales", scales)
            return codes * scales[:, None].astype(np.float64)
        groups = -(-K // group)
        padded = np.pad(w, ((0, 0), (0, groups * group - K))).reshape(N, groups, group)
        scales = (np.abs(padded).max(2) / 7.5 + 1e-6).astype(np.float16)
        wide = np.repeat(scales.astype(np.float64), group, axis=1)[:, :K]
        codes = np.clip(np.rint(w / wide) + 8, 0, 15).astype(np.uint8)
        self.put(f"{name}.codes", codes, "n16k8", "u4")
        self.put(f"{name}.scales", scales, "n16")
        return (codes.astype(np.float64) - 8) * wide

    def tensor(self, name: str) -> np.ndarray:
        return self._stored[name]

    def logical(self, name: str) -> np.ndarray:
        spec = self.manifest.tensors[name]
        return layouts.unpack(spec.layout, self._stored[name], spec.shape)

    def rows(self, name: str, a: int, b: int) -> np.ndarray:
        spec = self.manifest.tensors[name]
        return layouts.unpack_rows(spec.layout, self._stored[name], spec.shape, a, b)


def tiny_config(family: str, *, tied: bool = True, ngroups: int = 2, d_model: int = 48) -> Any:
    """A Config of two layers, with a vocabulary of 60 ids in 64 rows."""
    raw: dict[str, Any] = dict(
        d_model=d_model, n_layer=2, vocab_size=60, pad_vocab_size_multiple=16, tie_embeddings=tied
    )
    raw |= dict(rms_norm=True, residual_in_fp32=True, fused_add_norm=True)
    if family == "mamba2":
        raw["ssm_cfg"] = dict(layer="Mamba2", d_state=16, headdim=8, ngroups=ngroups)
    else:
        raw["ssm_cfg"] = dict(layer="Mamba1", d_state=8)
    return models.find(family, "config").Config.from_state_spaces(raw)


def random_bundle(
    family: str,
    bits: int = 4,
    act: int = 8,
    *,
    tied: bool = True,
    rotate: bool = True,
    ngroups: int = 2,
    seed: int = 0,
    ssm_act: int | None = None,
) -> MemoryBundle:
    """A model with random weights, and activation scales about right for them."""
    rng = np.random.default_rng(seed)
    c = tiny_config(family, tied=tied, ngroups=ngroups)
    b = MemoryBundle(family=family, config=c.to_json(), rotate=rotate, vocab_size=c.true_vocab_size, recipe={})
    D, E, N = c.d_model, c.d_inner, c.d_state
    ssm8 = (act if ssm_act is None else ssm_act) == 8

    def vector(name: str, values: np.ndarray) -> None:
        b.put(name, np.asarray(values, np.float32))

    def site(name: str, n: int, k: int, *, act: int = act, bits: int = bits, peak: float = 5.0) -> None:
        b.put_site(name, rng.normal(0, k**-0.5, (n, k)), bits, act)
        if act == 8:
            vector(f"{name}.in_scale", np.array([peak / 127]))

    site("embedding", c.vocab_size, D, act=16)
    for i in range(c.n_layer):
        at = f"layers.{i}"
        if family == "mamba2":
            H, channels = E // c.headdim, E + 2 * c.ngroups * N
            site(f"{at}.in_proj", E + channels + H, D)
            rows, cols, A, heads = E, c.ngroups * N, -rng.uniform(1, 8, H), H
        else:
            channels, rows, cols, A, heads = E, E, N, -np.tile(np.arange(1.0, N + 1), (E, 1)), E
            site(f"{at}.in_proj", 2 * E, D)
            site(f"{at}.x_proj", c.dt_rank + 2 * N, E, act=8 if ssm8 else 16, bits=8 if bits < 16 else 16, peak=127)
            site(f"{at}.dt_proj", E, c.dt_rank, act=16, bits=8 if bits < 16 else 16)
        vector(f"{at}.conv.weight", rng.normal(0, 0.5, (channels, c.d_conv)))
        vector(f"{at}.conv.bias", rng.normal(0, 0.1, channels))
        if ssm8:
            vector(f"{at}.conv.out_scale", rng.uniform(3, 5, channels) / 127)
        vector(f"{at}.ssm.A", A)
        vector(f"{at}.ssm.D", rng.normal(1, 0.2, heads))
        vector(f"{at}.ssm.dt_bias", rng.uniform(-5, -1, heads))
        vector(f"{at}.ssm.state_rows", rng.uniform(0.15, 0.2, rows))
        vector(f"{at}.ssm.state_cols", rng.uniform(0.15, 0.2, cols))
        site(f"{at}.out_proj", D, E)
    if tied:
        vector("norm_f.weight", rng.uniform(0.5, 1.5, D))
        b.manifest.sites["head"] = {**b.manifest.sites["embedding"], "act": act}
        if act == 8:
            vector("head.in_scale", np.array([5 / 127]))
    else:
        site("head", c.vocab_size, D)
    return b


def rotated(w: np.ndarray, rotate: bool) -> np.ndarray:
    """Rows of w in the rotated basis, where there is one."""
    return rotation.rotate(w) if rotate else w
