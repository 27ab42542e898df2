"""A recipe is data: which site gets which scheme, and which of the model-wide choices are on.

The whole recipe travels in the bundle's manifest; nothing reads precision from a file name.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from quamba_edge.errors import BadRecipe

LARGEST_GROUP = 1 << 16  # columns; wider than any site's input
BITS, ACTS, METHODS, GRAINS = (4, 6, 8, 16), (8, 16), ("gptq", "rtn"), ("channel", "group", "tensor")


@dataclass(frozen=True)
class Scheme:
    """How one linear site is stored and fed.

    bits    4 (groups of `group` columns share an f16 scale), 8 or 6 (one f32 scale per output row), 16 (f16).  6 makes the file
            smaller, and nothing faster: codes are widened to 8 bits when a bundle is loaded
    act     8: its input is int8 with one static scale; 16: f16
    method  "gptq" or "rtn" (round to nearest); without meaning at 16 bits
    """

    bits: int = 16
    act: int = 16
    group: int = 128
    method: str = "gptq"

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.act not in ACTS or self.method not in METHODS:
            raise BadRecipe(f"{self}: bits must be one of {BITS}, act of {ACTS}, method of {METHODS}")
        if self.bits == 16 and self.act == 8:
            raise BadRecipe("16-bit weights with 8-bit activations have no kernel: use act 16, or bits 8, 6 or 4")
        if type(self.group) is not int or not 8 <= self.group <= LARGEST_GROUP or self.group % 8:
            raise BadRecipe(f"group {self.group!r}: must be a multiple of 8, up to {LARGEST_GROUP}")

    @classmethod
    def from_json(cls, pattern: str, raw: Any) -> Scheme:
        """From the JSON object that a recipe's `sites` has under `pattern`."""
        known = [f.name for f in fields(cls)]
        if not isinstance(raw, dict) or not set(raw) <= set(known):
            raise BadRecipe(f"sites[{pattern!r}] is {raw!r:.80}, expected an object of {', '.join(known)}")
        return cls(**raw)


@dataclass(frozen=True)
class Recipe:
    """`sites` maps patterns ("embedding", "head", "layers.*.in_proj", "layers.3.*") to schemes; a later pattern wins.
    The embedding is rounded to nearest whatever its method; a tied head shares its matrix, and must have its bits and group.

    rotate      Hadamard rotation of the residual stream and of out_proj's input (Quamba2, section 4)
    ssm_act     8: the SSM's inputs are int8 in layers whose in_proj has act 8; 16: left as floats
    x_grain     int8 scales of the SSM input x: per "channel", per sort-and-cluster "group", or per "tensor"
    bc_grain    int8 scales of B and C (Mamba2): per "channel", per SSD "group", or per "tensor"
    act_search  static scales of the linears' int8 inputs by least squared error, or, where no norm is before them, by the largest
                magnitudes of 99 % of the tokens; false: the largest magnitude / 127
    percentile  of each channel's |x| that the static scale of the SSM input must cover; 100 is absmax
    repair      share of what earlier layers' rounding did to a 4-bit GPTQ site's input that its weight makes up for; 0: none
    refine      rounds of refitted scales and coordinate descent after GPTQ, at 4 bits; 0: none
    clip_search search the 4-bit scale of each group for least squared error, instead of absmax / 7.5
    weight_grain "channel": 8-bit weights with one scale per output row; "tensor": one for the matrix (ablation)
    signed_embedding  take the signed maximum of an embedding row, as the published code does (ablation)
    """

    name: str
    sites: dict[str, Scheme]
    rotate: bool = True
    ssm_act: int = 16
    x_grain: str = "channel"
    bc_grain: str = "channel"
    act_search: bool = True
    percentile: float = 100.0
    repair: float = 0.5
    refine: int = 2
    clip_search: bool = True
    weight_grain: str = "channel"
    signed_embedding: bool = False

    def __post_init__(self) -> None:
        if self.x_grain not in GRAINS or self.bc_grain not in GRAINS or self.weight_grain not in ("channel", "tensor"):
            raise BadRecipe(
                f"recipe {self.name!r}: x_grain and bc_grain are one of {GRAINS}, weight_grain 'channel' or 'tensor'"
            )
        if type(self.percentile) not in (int, float) or not 0 < self.percentile <= 100:
            raise BadRecipe(f"recipe {self.name!r}: percentile {self.percentile!r} is not a number in (0, 100]")
        if type(self.repair) not in (int, float) or not 0 <= self.repair <= 1:
            raise BadRecipe(f"recipe {self.name!r}: repair {self.repair!r} is not a number from 0 to 1")
        if type(self.refine) is not int or not 0 <= self.refine <= 100:
            raise BadRecipe(
                f"recipe {self.name!r}: refine {self.refine!r} is not a whole number of rounds from 0 to 100"
            )
        if self.ssm_act not in ACTS:
            raise BadRecipe(f"recipe {self.name!r}: ssm_act {self.ssm_act!r} is not one of {ACTS}")
        for name in ("rotate", "act_search", "clip_search", "signed_embedding"):
            if type(getattr(self, name)) is not bool:
                raise BadRecipe(f"recipe {self.name!r}: {name} is {getattr(self, name)!r}, expected true or false")

    def scheme(self, site: str) -> Scheme:
        """The scheme of a site such as "layers.3.in_proj"."""
        for pattern in reversed(self.sites):
            if fnmatchcase(site, pattern):
                return self.sites[pattern]
        raise BadRecipe(f'recipe {self.name!r} says nothing about {site}; add a pattern such as "*"')

    def with_method(self, method: str) -> Recipe:
        return replace(self, sites={p: replace(s, method=method) for p, s in self.sites.items()})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Any) -> Recipe:
        """From a recipe's JSON object, or from a list naming one mode per layer (["w4a8", "w4a16", ...], the W4AX form)."""
        if isinstance(raw, list):
            return mixed(raw)
        if not isinstance(raw, dict) or not isinstance(raw.get("sites"), dict):
            raise BadRecipe('a recipe is an object with "sites", or a list of one mode name per layer')
        if "layers" in raw:
            raise BadRecipe(
                '"layers" is not a recipe field: give the list alone, or patterns such as "layers.3.*" in "sites"'
            )
        unknown = set(raw) - {f.name for f in fields(cls)}
        if unknown:
            raise BadRecipe(f"unknown recipe fields: {', '.join(sorted(unknown))}")
        sites = {p: Scheme.from_json(p, s) for p, s in raw["sites"].items()}
        return cls(**{**raw, "name": str(raw.get("name", "custom")), "sites": sites})


def _recipe(name: str, bits: int, act: int, *, small: bool) -> Recipe:
    """The shipped recipe of a mode.  Embedding and head keep 8 bits in models under 1B, where 4 cost accuracy (Quamba2, table 10)."""
    if bits == 16:
        return Recipe(name, {"*": Scheme()}, rotate=False)
    body = Scheme(bits, act)
    edge = Scheme(8 if small else bits, act)
    # x_proj and dt_proj (Mamba1) are 5 % of the weights and feed the exponential: 8 bits, and dt_proj's few inputs stay f16.
    sites = {
        "*": body,
        "embedding": replace(edge, method="rtn"),
        "head": edge,
        "*.x_proj": Scheme(8, act),
        "*.dt_proj": Scheme(8, 16),
    }
    return Recipe(name, sites, ssm_act=act)


MODES = {"w16a16": (16, 16), "w8a8": (8, 8), "w4a16": (4, 16), "w4a8": (4, 8)}


FINE = {
    "w4a16-g32": "w4a16",
    "w4a8-g32": "w4a8",
}  # the mode with groups of 32 columns, and 6 bits for embedding and head


def shipped(name: str, *, small: bool = True) -> Recipe:
    """The recipe of a mode; `small` models (under 1B parameters) keep embedding and head at 8 bits.

    The -g32 recipes are for small models and small files: less loss in fewer bytes than 8-bit edges and groups of 128, but four times
    the scales to read and to multiply by.
    """
    if name in FINE:
        base = shipped(FINE[name])
        edges = {p: replace(base.sites[p], bits=6) for p in ("embedding", "head")}
        return replace(base, name=name, sites=base.sites | {"*": replace(base.sites["*"], group=32)} | edges)
    if name not in MODES:
        raise BadRecipe(f"{name!r} is not a recipe: choose from {', '.join([*MODES, *FINE])}, or give a JSON file")
    return _recipe(name, *MODES[name], small=small)


def mixed(layers: list[Any], *, small: bool = True) -> Recipe:
    """A per-layer mix (W4AX, Quamba2 section 4.5): one mode name per layer; edges as in the mode of most layers."""
    names = [str(n).lower() for n in layers]
    if not names:
        raise BadRecipe("a per-layer list names no layer")
    base = shipped(max(sorted(set(names)), key=names.count), small=small)
    sites = dict(base.sites)
    rotated = [shipped(n, small=small).rotate for n in names]
    for i, name in enumerate(names):
        for pattern, scheme in shipped(name, small=small).sites.items():
            if pattern == "*" or pattern.startswith("*."):
                sites[f"layers.{i}.{pattern[2:] or '*'}"] = scheme
    act = 8 if any(shipped(n, small=small).ssm_act == 8 for n in names) else 16
    return replace(base, name="w4ax", sites=sites, ssm_act=act, rotate=all(rotated))


def load(text: str, *, small: bool = True, n_layer: int | None = None) -> Recipe:
    """A shipped recipe by name, or one from a JSON file."""
    if text in MODES or text in FINE:
        return shipped(text, small=small)
    path = Path(text)
    if not path.is_file():
        raise BadRecipe(f"{text!r} is neither a recipe ({', '.join([*MODES, *FINE])}) nor a file")
    try:
        raw = json.loads(path.read_text())
    except ValueError as e:
        raise BadRecipe(f"{path}: not JSON ({e})") from None
    if isinstance(raw, list):
        if n_layer is not None and len(raw) != n_layer:
            raise BadRecipe(f"{path}: names {len(raw)} layers, the model has {n_layer}")
        return mixed(raw, small=small)
    return Recipe.from_json(raw)
