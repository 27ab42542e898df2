"""Layers of several bundles of one model as one bundle, so that a trial writes nothing: what `Engine` and backends need, and no file.

Every tensor is that of one of the bundles, mapped where it lies.  Each bundle was quantized as a whole, so a layer was quantized behind
layers that may differ from those that stand before it here; what a mix loses is what is measured of it, and `write` makes a bundle
of just that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from quamba_edge.bundle.manifest import Manifest
from quamba_edge.bundle.reader import Bundle
from quamba_edge.bundle.writer import write_bundle


class Mix:
    """`bundles` by name; `where` says which of them each part is from.

    Parts are "embedding", "head" (also norm_f and the tokenizer), "layers.3" (all of a layer), "layers.3.out_proj" (that site alone)
    and "layers.3.out_proj.weight" (its codes and scales, not how it is fed).
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
        layer, site = ".".join(words[:2]), ".".join(words[:3])
        weight = f"{site}.weight" if len(words) > 3 and words[3] != "in_scale" else site
        return self._bundles[next(self._where[part] for part in (weight, site, layer) if part in self._where)]

    def tensor(self, name: str) -> np.ndarray:
        return self._holder(name).tensor(name)

    def logical(self, name: str) -> np.ndarray:
        return self._holder(name).logical(name)

    def rows(self, name: str, a: int, b: int) -> np.ndarray:
        return self._holder(name).rows(name, a, b)

    def gather(self, name: str, rows: np.ndarray) -> np.ndarray:
        return self._holder(name).gather(name, rows)

    def write(self, path: Path, described: Callable[[Manifest], Manifest]) -> None:
        """A bundle of these tensors, its manifest changed by `described`.  Raises as `writer.write_bundle`."""
        table = self.manifest.tensors
        write_bundle(
            path,
            described(self.manifest),
            ((n, t.shape, t.layout, self._holder(n).stored(n)) for n, t in table.items()),
        )
