"""Layers of several bundles of one model as one bundle, so that a trial writes nothing: what `Engine` and backends need, and no file.

Every tensor is that of one of the bundles, mapped where it lies.  Each bundle was quantized as a whole, so a layer was quantized behind
layers that may differ from those that stand before it here; docs/search.md has what that costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from quamba_edge.bundle.manifest import Manifest
from quamba_edge.bundle.reader import Bundle


class Mix:
    """`bundles` by name; `where` says which of them each part is from.

    Parts are "embedding", "head" (also norm_f and the tokenizer), "layers.3" (all of a layer) and "layers.3.out_proj" (that site alone).
    """

    def __init__(self, bundles: Mapping[str, Bundle], where: Mapping[str, str]):
        self._bundles, self._where = bundles, where
        first = next(iter(bundles.values())).manifest
        names = list(dict.fromkeys(n for bundle in bundles.values() for n in bundle.manifest.tensors))
        held = {name: self._holder(name).manifest.tensors for name in names}
        tensors = {name: found[name] for name, found in held.items() if name in found}
        sites = {site: self._holder(site).manifest.sites[site] for site in first.sites}
        self.manifest: Manifest = replace(first, tensors=tensors, sites=sites)

    def _holder(self, name: str) -> Bundle:
        """The bundle that a tensor, or a site, is from."""
        words = name.split(".")
        if words[0] != "layers":
            return self._bundles[self._where["embedding" if words[0] == "embedding" else "head"]]
        site, layer = ".".join(words[:3]), ".".join(words[:2])
        return self._bundles[self._where[site if site in self._where else layer]]

    def tensor(self, name: str) -> np.ndarray:
        return self._holder(name).tensor(name)

    def logical(self, name: str) -> np.ndarray:
        return self._holder(name).logical(name)

    def rows(self, name: str, a: int, b: int) -> np.ndarray:
        return self._holder(name).rows(name, a, b)

    def gather(self, name: str, rows: np.ndarray) -> np.ndarray:
        return self._holder(name).gather(name, rows)
