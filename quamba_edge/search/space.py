"""What a search may choose: for every layer one of a few choices, and one for the ends of the model.

A choice is how a layer is stored and fed: "w4a8", "w8a16", "w4a8/out_proj=8" (4 bits, but 8 in out_proj).  x_proj and dt_proj of
Mamba1 keep what the shipped recipes give them.  An assignment names a choice for every place; `Space.recipe` makes a recipe of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quamba_edge.errors import BadUsage
from quamba_edge.quant.layer import SITES
from quamba_edge.quant.recipe import Recipe, Scheme, shipped

LARGE = ("in_proj", "out_proj")  # the sites whose bits a choice sets
FORM = re.compile(r"w(4|6|8|16)a(8|16)((?:/(?:in_proj|out_proj)=(?:4|6|8))*)")
SETS = {
    "w4ax": ("w4a8", "w4a16"),
    "wxa8": ("w4a8", "w4a8/in_proj=8", "w4a8/out_proj=8", "w8a8"),
    "wxax": tuple(f"w4a{a}{more}" for a in (8, 16) for more in ("", "/in_proj=8", "/out_proj=8")) + ("w8a8", "w8a16"),
}  # sets of choices by name
ENDS = "ends"  # the place of embedding and head

Assignment = dict[str, str]  # place → choice, places in the order of the space


@dataclass(frozen=True)
class Choice:
    """bits of in_proj and out_proj, and act: 8 or 16 bits for what enters the layer's products and its SSM."""

    name: str
    in_proj: int
    out_proj: int
    act: int

    @classmethod
    def parse(cls, text: str) -> Choice:
        """BadUsage for what is no choice."""
        found = FORM.fullmatch(text)
        if found is None or (found[1] == "16" and (found[2] == "8" or found[3])):
            raise BadUsage(
                f"{text!r} is no choice for a layer: expected one like w4a8, w8a16, w16a16 or w4a8/out_proj=8, or a set: {', '.join(SETS)}"
            )
        bits = dict.fromkeys(LARGE, int(found[1]))
        for part in filter(None, found[3].split("/")):
            site, _, value = part.partition("=")
            bits[site] = int(value)
        return cls(text, bits["in_proj"], bits["out_proj"], int(found[2]))

    @property
    def modes(self) -> dict[str, str]:
        """The uniform mode, such as "w8a16", that each large site is quantized like."""
        return {"in_proj": f"w{self.in_proj}a{self.act}", "out_proj": f"w{self.out_proj}a{self.act}"}


def mode_schemes(mode: str, family: str, small: bool) -> dict[str, Scheme]:
    """The scheme of each site of a layer in a uniform mode, shipped ("w4a8") or not ("w8a16")."""
    chosen = Choice.parse(mode)
    if chosen.in_proj == 16:
        return {site: Scheme() for site in SITES[family]}
    base = shipped("w4a8" if chosen.act == 8 else "w4a16", small=small)
    schemes = {site: base.scheme(f"layers.0.{site}") for site in SITES[family]}
    return schemes | {site: replace(schemes[site], bits=getattr(chosen, site)) for site in LARGE}


def end_schemes(mode: str, small: bool) -> dict[str, Scheme]:
    """The schemes of embedding and head in a mode: its bits, and for the head's input its act."""
    chosen = Choice.parse(mode)
    if chosen.in_proj == 16:
        return {"embedding": Scheme(), "head": Scheme()}
    base = shipped("w4a8" if chosen.act == 8 else "w4a16", small=small)
    return {site: replace(base.scheme(site), bits=chosen.in_proj) for site in ("embedding", "head")}


@dataclass(frozen=True)
class Space:
    """`choices` of every layer, cheapest or least precise first by convention, and `ends` those of embedding and head."""

    family: str
    n_layer: int
    small: bool
    choices: tuple[str, ...]
    ends: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in (*self.choices, *self.ends):
            Choice.parse(name)
        if not self.choices or not self.ends or len(set(self.choices)) < len(self.choices):
            raise BadUsage(f"choices {', '.join(self.choices) or 'none'}: expected one or more, each once")
        if any("/" in name for name in self.ends):
            raise BadUsage(f"ends {', '.join(self.ends)}: embedding and head take a mode such as w8a8 or w4a16")

    @classmethod
    def of(cls, family: str, config: Any, small: bool, choices: str, ends: str | None = None) -> Space:
        """From the words of the command line: a set's name or choices with commas; ends None is what the shipped recipes have."""
        names = SETS.get(choices.lower()) or tuple(c.strip() for c in choices.lower().split(","))
        act = 8 if any(Choice.parse(n).act == 8 for n in names) else 16
        usual = shipped(f"w4a{act}", small=small).scheme("head")
        given = (f"w{usual.bits}a{usual.act}",) if ends is None else tuple(e.strip() for e in ends.lower().split(","))
        return cls(family, config.n_layer, small, names, given)

    @property
    def places(self) -> dict[str, tuple[str, ...]]:
        """The choices of every place: layers.0, layers.1, ... and ends."""
        return {**{f"layers.{i}": self.choices for i in range(self.n_layer)}, ENDS: self.ends}

    @property
    def size(self) -> int:
        return len(self.choices) ** self.n_layer * len(self.ends)

    def uniform(self, choice: str | None = None, ends: str | None = None) -> Assignment:
        """Every layer alike; the first choice and the first ends where none is named."""
        layer = self.choices[0] if choice is None else choice
        return {p: layer if p != ENDS else (ends or self.ends[0]) for p in self.places}

    def modes(self) -> list[str]:
        """The uniform modes that all layers' tensors can be taken from."""
        return list(dict.fromkeys(m for name in self.choices for m in Choice.parse(name).modes.values()))

    def schemes(self, choice: str) -> dict[str, Scheme]:
        """The scheme of each site of a layer that has this choice."""
        modes = Choice.parse(choice).modes
        found = mode_schemes(modes["in_proj"], self.family, self.small)
        return found | {"out_proj": mode_schemes(modes["out_proj"], self.family, self.small)["out_proj"]}

    def recipe(self, given: Mapping[str, str], name: str = "w4ax") -> Recipe:
        """The recipe of an assignment, which `pack --recipe` takes: the commonest choice as patterns, then what differs."""
        layers = [given[f"layers.{i}"] for i in range(self.n_layer)]
        commonest = self.schemes(max(sorted(set(layers)), key=layers.count))
        sites = {**end_schemes(given[ENDS], self.small)}
        sites |= {f"layers.*.{site}": scheme for site, scheme in commonest.items()}
        for i, choice in enumerate(layers):
            sites |= {f"layers.{i}.{s}": scheme for s, scheme in self.schemes(choice).items() if scheme != commonest[s]}
        act = min(Choice.parse(c).act for c in layers)
        return replace(shipped(f"w4a{act}", small=self.small), name=name, sites=sites, ssm_act=act)

    def a16(self, given: Mapping[str, str]) -> int:
        """How many layers read their inputs in 16 bits."""
        return sum(Choice.parse(given[f"layers.{i}"]).act == 16 for i in range(self.n_layer))

    def to_json(self) -> dict[str, Any]:
        return {"family": self.family, "layers": self.n_layer, "choices": list(self.choices), "ends": list(self.ends)}


def written(given: Mapping[str, str]) -> str:
    """An assignment in one line: runs of equal layers, then the ends."""
    layers = [(int(p.split(".")[1]), c) for p, c in given.items() if p != ENDS]
    groups: dict[str, list[int]] = {}
    for i, choice in layers:
        groups.setdefault(choice, []).append(i)
    said = [f"{choice}: {_runs(where)}" for choice, where in sorted(groups.items(), key=lambda g: -len(g[1]))]
    return "; ".join([*said, f"ends {given[ENDS]}"])


def _runs(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
