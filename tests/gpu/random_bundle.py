"""A bundle of any published size full of random numbers, to measure speed and memory with: no checkpoint, no quantizer, seconds.

    python -m tests.gpu.random_bundle mamba2-2.7b w4a8 OUT.qedge [LAYERS]

Codes are random bits; scales are such that activations stay of the size that a trained model's have.  It has no tokenizer, no golden
prompts, and nothing to say.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quamba_edge.apps.plan import SMALL
from quamba_edge.bundle.outline import outline, parameters
from quamba_edge.bundle.writer import Stored, write_bundle
from quamba_edge.layouts import array_type
from quamba_edge.models import published
from quamba_edge.quant.recipe import shipped

BLOCK = 1 << 20  # random numbers made; a tensor repeats them from a place of its own
CODE_STD = {"u4": 4.6, "i8": 73.3}  # of uniform codes


def write(out: Path, model: str | tuple[str, Any], recipe: str, layers: int | None = None, seed: int = 0) -> str:
    """Write the bundle; its digest.  model: a published name, or (family, Config).  layers: fewer than the model has."""
    found = published.config(model) if isinstance(model, str) else model
    assert found is not None, f"{model!r} is not one of {', '.join(published.NAMES)}"
    family, config = found
    if layers is not None:
        config = replace(config, n_layer=layers)
    small = parameters(*found) < SMALL
    described = replace(outline(family, config, shipped(recipe, small=small)), producer="tests/gpu/random_bundle.py")
    return write_bundle(out, replace(described, tensors={}), _tensors(described, np.random.default_rng(seed)))


def _tensors(described: Any, rng: np.random.Generator) -> Iterator[Stored]:
    noise = {
        "u4": rng.integers(0, 1 << 32, BLOCK, dtype=np.uint32),
        "i8": rng.integers(-127, 128, 4 * BLOCK).astype(np.int8),
        "f16": rng.standard_normal(BLOCK).astype(np.float16),
        "f32": rng.standard_normal(BLOCK).astype(np.float32),
    }
    for name, spec in described.tensors.items():
        stored, shape = spec.stored
        count = math.prod(shape)
        if spec.dtype in CODE_STD:
            array = _repeated(noise[spec.dtype], count, rng)
        else:
            array = _values(name, spec, count, noise, rng, described)
        yield name, spec.shape, spec.layout, array.reshape(shape).astype(array_type(stored), copy=False)


def _repeated(noise: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    start = int(rng.integers(noise.size))
    return np.resize(np.roll(noise, -start) if count < noise.size else noise, count)


def _values(
    name: str, spec: Any, count: int, noise: dict[str, np.ndarray], rng: np.random.Generator, described: Any
) -> np.ndarray:
    """Floats by what they are: see docs/architecture.md, section 2."""
    site, _, kind = name.rpartition(".")
    if kind == "scales":
        record = described.sites[site]
        std = CODE_STD["u4" if record["bits"] == 4 else "i8"]
        return np.full(count, 1 / (std * math.sqrt(record["K"])))
    if kind == "weight" and site in described.sites:
        return _repeated(noise["f16"], count, rng) * np.float16(1 / math.sqrt(spec.shape[1]))
    some = _repeated(noise["f32"], count, rng)
    ways = {
        "weight": (0.0, 0.3) if site.endswith("conv") else (1.0, 0.0),
        "bias": (0.0, 0.1),
        "in_scale": (0.03, 0.0),
        "out_scale": (0.02, 0.0),
        "D": (1.0, 0.0),
        "dt_bias": (-4.0, 1.0),
        "state_rows": (0.2, 0.0),
        "state_cols": (0.2, 0.0),
    }
    if kind == "A":
        return -np.exp(1.4 + 0.7 * np.clip(some, -2, 2))
    assert kind in ways, f"{name}: nothing is known of it here"
    mean, spread = ways[kind]
    return mean + spread * some


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    print(write(Path(sys.argv[3]), *sys.argv[1:3], *map(int, sys.argv[4:])))
