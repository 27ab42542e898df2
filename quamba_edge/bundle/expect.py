"""What tensors a bundle of each architecture must hold, and of what shape.

Native kernels trust these sizes, so a bundle that contradicts its own dimensions is refused before any kernel sees it.
The names are those of docs/architecture.md, section 2; symbols as in models/__init__.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypedDict


class Site(TypedDict):
    """How a linear site is stored and fed: weight (N, K); the rest as in quant.recipe.Scheme."""

    N: int
    K: int
    bits: int
    group: int
    act: int
    method: str


class Wanted(NamedTuple):
    """A tensor as it must be, if it is there; `needed` 1: it must be, 0: it may be, -1: it must not be."""

    dtype: str
    shape: tuple[int, ...]
    layout: str
    needed: int = 1


class Family(NamedTuple):
    """sites(config) -> {site of a layer: (N, K)};  vectors(config, sites of the layer) -> {tensor of a layer: Wanted}."""

    sites: Callable[[Any], dict[str, tuple[int, int]]]
    vectors: Callable[[Any, Mapping[str, Site]], dict[str, Wanted]]


def _f32(*shape: int, needed: int = 1) -> Wanted:
    return Wanted("f32", shape, "row", needed)


def _mamba_sites(c: Any) -> dict[str, tuple[int, int]]:
    E, D, N, R = c.d_inner, c.d_model, c.d_state, c.dt_rank
    return {"in_proj": (2 * E, D), "x_proj": (R + 2 * N, E), "dt_proj": (E, R), "out_proj": (D, E)}


def _mamba_vectors(c: Any, sites: Mapping[str, Site]) -> dict[str, Wanted]:
    E, N = c.d_inner, c.d_state
    return {
        "conv.weight": _f32(E, c.d_conv),
        "conv.bias": _f32(E),
        # x_proj reads what the convolution writes: int8 codes for the one are int8 codes from the other
        "conv.out_scale": _f32(E, needed=1 if sites["x_proj"]["act"] == 8 else -1),
        "ssm.A": _f32(E, N),
        "ssm.D": _f32(E),
        "ssm.dt_bias": _f32(E),
        "ssm.state_rows": _f32(E),
        "ssm.state_cols": _f32(N),
    }


def _mamba2_sites(c: Any) -> dict[str, tuple[int, int]]:
    E, D, gN = c.d_inner, c.d_model, c.ngroups * c.d_state
    return {"in_proj": (2 * E + 2 * gN + E // c.headdim, D), "out_proj": (D, E)}


def _mamba2_vectors(c: Any, sites: Mapping[str, Site]) -> dict[str, Wanted]:
    E, H, gN = c.d_inner, c.d_inner // c.headdim, c.ngroups * c.d_state
    return {
        "conv.weight": _f32(E + 2 * gN, c.d_conv),
        "conv.bias": _f32(E + 2 * gN),
        "conv.out_scale": _f32(E + 2 * gN, needed=0),
        "ssm.A": _f32(H),
        "ssm.D": _f32(H),
        "ssm.dt_bias": _f32(H),
        "ssm.state_rows": _f32(E),
        "ssm.state_cols": _f32(gN),
    }


FAMILIES = {"mamba": Family(_mamba_sites, _mamba_vectors), "mamba2": Family(_mamba2_sites, _mamba2_vectors)}


def sites(family: str, config: Any) -> Iterator[tuple[str, tuple[int, int]]]:
    """(site, (N, K)) of the whole model, one at a time: a config may claim any number of layers."""
    yield "embedding", (config.vocab_size, config.d_model)
    for i in range(config.n_layer):
        for name, shape in FAMILIES[family].sites(config).items():
            yield f"layers.{i}.{name}", shape
    yield "head", (config.vocab_size, config.d_model)


def tensors(family: str, config: Any, given: Mapping[str, Site]) -> Iterator[tuple[str, Wanted]]:
    """(name, Wanted) of every tensor that a runtime may ask for, given sites that agree with `sites`."""
    tied = config.tie_embeddings
    yield from _linear("embedding", given["embedding"], scale=False)
    for i in range(config.n_layer):
        prefix = f"layers.{i}."
        own = {name: given[prefix + name] for name in FAMILIES[family].sites(config)}
        for name, site in own.items():
            yield from _linear(prefix + name, site)
        for name, wanted in FAMILIES[family].vectors(config, own).items():
            yield prefix + name, wanted
    yield "norm_f.weight", _f32(config.d_model, needed=1 if tied else -1)  # untied, it is folded into the head
    for name, wanted in _linear("head", given["head"]):
        yield name, wanted._replace(needed=-1) if tied and name != "head.in_scale" else wanted


def _linear(name: str, site: Site, scale: bool = True) -> Iterator[tuple[str, Wanted]]:
    """The tensors of a linear site; `scale`: it has an activation scale when its input is int8."""
    N, K = site["N"], site["K"]
    if site["bits"] == 16:
        yield f"{name}.weight", Wanted("f16", (N, K), "row")
    elif site["bits"] in (6, 8):
        yield f"{name}.codes", Wanted("i8", (N, K), "n16k4" if site["bits"] == 8 else "n16k4x6")
        yield f"{name}.scales", _f32(N)
    else:
        yield f"{name}.codes", Wanted("u4", (N, K), "n16k8")
        yield f"{name}.scales", Wanted("f16", (N, -(-K // site["group"])), "n16")
    if scale:
        yield f"{name}.in_scale", _f32(1, needed=1 if site["act"] == 8 else -1)
