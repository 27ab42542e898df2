"""`quamba-edge inspect`: what is in a bundle, what each part weighs, where it came from.  Reads the header only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quamba_edge.bundle.manifest import Manifest
from quamba_edge.bundle.reader import Bundle

# Last words of names of tensors that hold the model's own parameters; the others are scales that quantizing added.
PARAMETERS = ("weight", "codes", "bias", "A", "D", "dt_bias")


@dataclass(frozen=True)
class Part:
    """One row of the table: a site in all layers, the vectors of all layers, or one end of the model."""

    name: str
    scheme: str  # such as "w4a8 g128 gptq", every one that occurs
    tensors: int
    parameters: int
    bytes: int  # as stored, padding included

    @property
    def bits_per_weight(self) -> float | None:
        return 8 * self.bytes / self.parameters if self.parameters else None


@dataclass(frozen=True)
class Inspection:
    """bits_per_weight is over everything in the bundle but header and tokenizer; norms that were folded away are not counted."""

    bundle: str
    bytes: int
    digest: str
    producer: str
    family: str
    config: dict[str, Any]
    vocab_size: int
    rotate: bool
    recipe: dict[str, Any]
    parts: tuple[Part, ...]
    header_bytes: int
    parameters: int
    bits_per_weight: float
    source: dict[str, Any]
    calibration: dict[str, Any]
    perplexity: dict[str, Any]
    golden_prompts: int
    has_tokenizer: bool
    has_chat_template: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; parts with their bits per weight."""
        parts = [{**asdict(p), "bits_per_weight": p.bits_per_weight} for p in self.parts]
        return {**asdict(self), "parts": parts}


def inspect(path: str | Path) -> Inspection:
    """Raises BadBundle subclasses as Bundle.open."""
    with Bundle.open(path, verify=False) as bundle:
        described, places = bundle.manifest, bundle.places
        names: dict[str, list[str]] = {}
        for name in places:
            names.setdefault(_part_of(name), []).append(name)
        parts = tuple(_part(part, of, described, {n: places[n].nbytes for n in of}) for part, of in names.items())
        stored = sum(p.bytes for p in parts if p.name != "tokenizer")
        parameters = sum(p.parameters for p in parts)
        return Inspection(
            bundle=str(path),
            bytes=Path(path).stat().st_size,
            digest=bundle.digest,
            producer=described.producer,
            family=described.family,
            config=described.config,
            vocab_size=described.vocab_size,
            rotate=described.rotate,
            recipe=described.recipe,
            parts=parts,
            header_bytes=min(e.start for e in places.values()),
            parameters=parameters,
            bits_per_weight=8 * stored / parameters,
            source=described.source,
            calibration=described.calibration,
            perplexity=described.perplexity,
            golden_prompts=len(described.golden),
            has_tokenizer="tokenizer.json" in places,
            has_chat_template=described.chat_template is not None,
        )


def _part_of(tensor: str) -> str:
    """The row of a tensor: "layers.3.in_proj.codes" belongs to "layers.*.in_proj"."""
    words = tensor.split(".")
    if words[0] == "layers" and len(words) > 2:
        return f"layers.*.{words[2]}"
    return "tokenizer" if tensor == "tokenizer.json" else words[0]


def _part(name: str, tensors: list[str], described: Manifest, sizes: Mapping[str, int]) -> Part:
    schemes = {}
    for tensor in tensors:
        site = described.sites.get(tensor.rpartition(".")[0])
        if site is not None:
            group = f" g{site['group']}" if site["bits"] == 4 else ""
            method = f" {site['method']}" if site["bits"] < 16 else ""
            schemes[f"w{site['bits']}a{site['act']}{group}{method}"] = True
    own = [t for t in tensors if t.rpartition(".")[2] in PARAMETERS]
    parameters = sum(math.prod(described.tensors[t].shape) for t in own)
    return Part(name, ", ".join(schemes), len(tensors), parameters, sum(sizes.values()))


def text(found: Inspection) -> str:
    """The report that people read."""
    config, ppl = found.config, found.perplexity
    shape = f"{config['n_layer']} layers, width {config['d_model']}, {found.vocab_size} tokens"
    tied = ", tied" if config.get("tie_embeddings") else ""
    extras = [w for w, has in (("tokenizer", found.has_tokenizer), ("chat template", found.has_chat_template)) if has]
    facts = {
        "model": f"{found.family}, {shape}{tied}; {found.parameters} parameters",
        "size": f"{_bytes(found.bytes)}, {found.bits_per_weight:.2f} bits per weight",
        "recipe": f"{found.recipe.get('name', '?')}{', rotated' if found.rotate else ''}",
        "source": _listed(found.source),
        "calibration": _listed(found.calibration),
        "perplexity": f"source {_figure(ppl.get('source'))}, bundle {_figure(ppl.get('bundle'))}"
        + (f" ({ppl['tokens']} tokens)" if ppl.get("tokens") else ""),
        "int8 states": f"cost {1000 * ppl['state_i8']['kl']:.2f}e-3 nats a token"
        if ppl.get("state_i8")
        else "not measured",
        "brings": ", ".join([*extras, f"{found.golden_prompts} golden prompts"]),
        "producer": found.producer,
        "digest": found.digest,
    }
    lines = [found.bundle, *(f"  {key:<12} {value}" for key, value in facts.items()), ""]
    lines.append(f"  {'part':<20} {'tensors':>7} {'parameters':>13} {'bytes':>13} {'bits':>6}  scheme")
    for p in found.parts:
        bits = "" if p.bits_per_weight is None else f"{p.bits_per_weight:.2f}"
        lines.append(
            f"  {p.name:<20} {p.tensors:>7} {p.parameters or '':>13} {p.bytes:>13} {bits:>6}  {p.scheme}".rstrip()
        )
    lines.append(f"  {'header':<20} {'':>7} {'':>13} {found.header_bytes:>13}")
    return "\n".join(lines)


def _listed(values: Mapping[str, Any]) -> str:
    """key value, key value; hashes shortened to what a person compares."""
    short = lambda v: v[:12] if isinstance(v, str) and len(v) == 64 else v
    return ", ".join(f"{k} {short(v)}" for k, v in values.items() if v is not None) or "unknown"


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
