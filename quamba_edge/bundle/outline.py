"""The manifest that a bundle will have, from dimensions and recipe alone: no weights, no file.

What `plan` counts bytes and steps with before anything is packed.  Which tensors there are is bundle/expect.py's to say; what is added
here is the choice that packing makes from the recipe (quant/layer.py, quant/walk.py).  A test compares with packed bundles.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from quamba_edge.bundle import expect, header
from quamba_edge.bundle.expect import Site
from quamba_edge.bundle.manifest import Manifest, Tensor
from quamba_edge.errors import BadRecipe
from quamba_edge.layouts import itemsize
from quamba_edge.quant.recipe import Recipe, Scheme

TOKENIZER_BYTES_PER_ID = 12  # measured: GPT-NeoX's tokenizer.json of 50,277 ids, compressed


def outline(family: str, config: Any, recipe: Recipe) -> Manifest:
    """Sites and tensors as packing `recipe` would write them; hashes are zeros, and there is no tokenizer.

    BadRecipe where a recipe does not suit a model (a tied head with other bits than the embedding).
    """
    schemes = {name: recipe.scheme(name) for name, _ in expect.sites(family, config)}
    embedding, head = schemes["embedding"], schemes["head"]
    if config.tie_embeddings:
        if (head.bits, head.group) != (embedding.bits, embedding.group) and head.bits + embedding.bits < 32:
            raise BadRecipe(
                f"recipe {recipe.name!r}: head has {head.bits} bits, embedding {embedding.bits}, but this model ties them to one "
                "matrix: give both the same"
            )
        schemes["head"] = replace(embedding, act=head.act if embedding.bits < 16 else 16)
    schemes["embedding"] = replace(embedding, act=16, method="rtn")
    int8_inputs = {i for i in range(config.n_layer) if recipe.ssm_act == 8 and schemes[f"layers.{i}.in_proj"].act == 8}
    for i in range(config.n_layer):  # x_proj reads what the convolution writes
        if f"layers.{i}.x_proj" in schemes:
            act = 8 if i in int8_inputs else 16
            schemes[f"layers.{i}.x_proj"] = replace(schemes[f"layers.{i}.x_proj"], act=act)
    sites = {name: _site(shape, schemes[name]) for name, shape in expect.sites(family, config)}
    tensors = {}
    for name, wanted in expect.tensors(family, config, sites):
        optional = wanted.needed == 0 and int(name.split(".")[1]) in int8_inputs  # Mamba2's conv.out_scale
        if wanted.needed == 1 or optional:
            tensors[name] = Tensor(wanted.dtype, wanted.shape, wanted.layout, "0" * 64)
    return Manifest(
        producer="",
        family=family,
        config=config.to_json(),
        recipe=recipe.to_json(),
        sites=sites,
        vocab_size=config.true_vocab_size,
        rotate=recipe.rotate,
        calibration={},
        perplexity={"source": None, "bundle": None},
        golden=[],
        source={"name": None, "digest": None, "license": None},
        tokenizer={"eos": [], "bos": None},
        tensors=tensors,
    )


def weight_bytes(manifest: Manifest) -> int:
    """Bytes of everything but header and tokenizer, as it lies in the file, padding included."""
    stored = (t.stored for name, t in manifest.tensors.items() if name != "tokenizer.json")
    return sum(math.prod(shape) * itemsize(dtype) for dtype, shape in stored)


def loaded_bytes(manifest: Manifest) -> int:
    """The same as kernels read it: 6-bit codes are widened when a bundle is loaded."""
    return sum(t.loaded_bytes for name, t in manifest.tensors.items() if name != "tokenizer.json")


def file_bytes(manifest: Manifest) -> int:
    """Bytes of the file that packing would write, with a tokenizer of usual size; within 0.2 % of those that were packed."""
    table = {name: t.stored for name, t in manifest.tensors.items()}
    metadata = {"format": header.BUNDLE, "manifest": manifest.text(), "manifest_sha256": "0" * 64}
    tokenizer = 0 if "tokenizer.json" in table else TOKENIZER_BYTES_PER_ID * manifest.vocab_size
    return len(header.emit(metadata, table)) + weight_bytes(manifest) + tokenizer


def parameters(family: str, config: Any) -> int:
    """Weights of the model as its authors count them, a tied head once, norms included."""
    matrices = {
        name: shape for name, shape in expect.sites(family, config) if name != "head" or not config.tie_embeddings
    }
    sites = {name: _site(shape, Scheme()) for name, shape in expect.sites(family, config)}
    vectors = (
        math.prod(wanted.shape)
        for name, wanted in expect.tensors(family, config, sites)
        if name.split(".")[-1] in ("bias", "A", "D", "dt_bias") or name.endswith("conv.weight")
    )
    norms = config.d_model * (config.n_layer + 1) + (config.d_inner * config.n_layer if family == "mamba2" else 0)
    return sum(map(math.prod, matrices.values())) + sum(vectors) + norms


def _site(shape: tuple[int, int], scheme: Scheme) -> Site:
    N, K = shape
    return Site(N=N, K=K, bits=scheme.bits, group=scheme.group, act=scheme.act, method=scheme.method)
