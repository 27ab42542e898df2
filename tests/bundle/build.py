"""Small bundles of random weights, for tests: every family, tied or not, of any scheme."""

import zlib
from pathlib import Path

import numpy as np

from quamba_edge import layouts, models
from quamba_edge.bundle import expect
from quamba_edge.bundle.manifest import Manifest
from quamba_edge.bundle.writer import write_bundle
from quamba_edge.quant.recipe import Recipe, Scheme

SIZES = {"d_model": 24, "n_layer": 2, "vocab_size": 40, "true_vocab_size": 37, "d_inner": 48, "d_state": 8, "d_conv": 4}
MORE = {"mamba": {"dt_rank": 3}, "mamba2": {"headdim": 16, "ngroups": 1}}
TOKENIZER = '{"version": "1.0", "added_tokens": ["ß"]}'


def described(family="mamba2", bits=4, act=8, tied=True, edge_bits=8, group=16, **sizes):
    """A manifest without tensors."""
    config = models.find(family, "config").Config(**{**SIZES, **MORE[family], "tie_embeddings": tied, **sizes})
    sites = {}
    for name, (N, K) in expect.sites(family, config):
        edge = name in ("embedding", "head")
        site_bits = edge_bits if edge else bits
        site_act = 16 if name == "embedding" or site_bits == 16 else act
        sites[name] = {"N": N, "K": K, "bits": site_bits, "group": group, "act": site_act, "method": "rtn"}
    return Manifest(
        producer="quamba_edge 0.1.0",
        family=family,
        config=config.to_json(),
        recipe=Recipe("test", {"*": Scheme(bits, act if bits < 16 else 16, group)}).to_json(),
        sites=sites,
        vocab_size=37,
        rotate=True,
        calibration={"source": "noise", "sha256": "00" * 32, "samples": 4, "length": 8, "seed": 0},
        perplexity={"source": 12.5, "bundle": 12.75, "tokens": 100},
        golden=[{"prompt": [1, 2], "tokens": [3], "top": [[3, 1.5], [4, 0.25]]}],
        source={"name": "tiny", "digest": "11" * 32, "license": "apache-2.0"},
        tokenizer={"eos": [0], "bos": None},
        chat_template='{{ "ümläut\\n" }}\n{% for m in messages %}\t{{ m.content }}{% endfor %}',
    )


def arrays(manifest, seed=0):
    """{name: (logical array, dtype, layout)} of everything such a bundle holds."""
    rng = np.random.default_rng(seed)
    config = models.find(manifest.family, "config").Config.from_json(manifest.config)
    found = {}
    for name, wanted in expect.tensors(manifest.family, config, manifest.sites):
        in_a8 = (
            name.endswith("conv.out_scale") and manifest.sites[name.replace("conv.out_scale", "in_proj")]["act"] == 8
        )
        if wanted.needed == 1 or (wanted.needed == 0 and in_a8):
            array = noise(rng, wanted.dtype, wanted.shape)
            array = np.clip(array, -32, 31) if wanted.layout == "n16k4x6" else array
            found[name] = (array, wanted.dtype, wanted.layout)
    text = np.frombuffer(zlib.compress(TOKENIZER.encode(), 9), np.uint8)
    return {**found, "tokenizer.json": (text, "u8", "row")}


def noise(rng, dtype, shape):
    low_high = {"u4": (0, 16), "u8": (0, 256), "i8": (-127, 128)}
    if dtype in low_high:
        return rng.integers(*low_high[dtype], shape).astype(layouts.DTYPES[dtype])
    return rng.standard_normal(shape).astype(layouts.DTYPES[dtype])


def stored(logical):
    """What write_part and write_bundle take, one at a time."""
    for name, (array, dtype, layout) in logical.items():
        yield name, array.shape, layout, layouts.pack(layout, array, dtype)


def write(path="tiny.qedge", seed=0, **kind):
    """A bundle on disk, and the arrays in it."""
    manifest = described(**kind)
    logical = arrays(manifest, seed)
    write_bundle(path, manifest, stored(logical))
    return Path(path), logical
