"""A bundle in memory: what Engine and backends need, without a file."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from quamba_edge import layouts
from quamba_edge.bundle.manifest import Tensor


class MemoryBundle:
    """Has `manifest`, `tensor`, `logical`, `rows` and `gather` as bundle/reader.py does; fill it with `put` and `put_site`."""

    def __init__(self, **manifest: Any):
        self.manifest = SimpleNamespace(tensors={}, sites={}, **manifest)
        self._stored: dict[str, np.ndarray] = {}

    def put(self, name: str, array: np.ndarray, layout: str = "row", dtype: str | None = None) -> None:
        dtype = dtype or next(d for d, t in layouts.DTYPES.items() if t == array.dtype)
        self._stored[name] = layouts.pack(layout, array, dtype)
        self.manifest.tensors[name] = Tensor(dtype, array.shape, layout, "")

    def put_site(self, name: str, w: np.ndarray, bits: int, act: int, group: int = 32) -> None:
        """Round w (N, K) to the nearest codes and store them."""
        N, K = w.shape
        self.manifest.sites[name] = {"N": N, "K": K, "bits": bits, "group": group, "act": act, "method": "rtn"}
        if bits == 16:
            self.put(f"{name}.weight", w.astype(np.float16))
        elif bits == 8:
            scales = (np.abs(w).max(1) / 127 + 1e-9).astype(np.float32)
            self.put(f"{name}.codes", np.clip(np.rint(w / scales[:, None]), -127, 127).astype(np.int8), "n16k4")
            self.put(f"{name}.scales", scales)
        else:
            groups = -(-K // group)
            padded = np.pad(w, ((0, 0), (0, groups * group - K))).reshape(N, groups, group)
            scales = (np.abs(padded).max(2) / 7.5 + 1e-6).astype(np.float16)
            wide = np.repeat(scales.astype(np.float64), group, axis=1)[:, :K]
            self.put(f"{name}.codes", np.clip(np.rint(w / wide) + 8, 0, 15).astype(np.uint8), "n16k8", "u4")
            self.put(f"{name}.scales", scales, "n16")

    def tensor(self, name: str) -> np.ndarray:
        return self._stored[name]

    def logical(self, name: str) -> np.ndarray:
        spec = self.manifest.tensors[name]
        return layouts.unpack(spec.layout, self._stored[name], spec.shape)

    def rows(self, name: str, a: int, b: int) -> np.ndarray:
        spec = self.manifest.tensors[name]
        return layouts.unpack_rows(spec.layout, self._stored[name], spec.shape, a, b)

    def gather(self, name: str, rows: np.ndarray) -> np.ndarray:
        spec = self.manifest.tensors[name]
        return layouts.gather(spec.layout, self._stored[name], spec.shape, rows)
