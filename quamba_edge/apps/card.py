"""A model card: what a bundle is, in Markdown, from the bundle alone, to be laid beside it.

Everything in it is read or hashed from the file, so a card cannot say what the bundle does not bear out.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from quamba_edge.apps.inspect import Inspection, inspect

BLOCK = 4 << 20  # bytes hashed at a time


def write(bundle: str | Path, out: Path) -> None:
    """Write the card of `bundle` to `out`.  Raises BadBundle subclasses, as opening a bundle does."""
    out.write_text(card(bundle), encoding="utf-8")


def card(bundle: str | Path) -> str:
    """The card's text."""
    path, found = Path(bundle), inspect(bundle)
    front = [
        f"license: {found.source.get('license') or 'unknown'}",
        "library_name: quamba_edge",
        "pipeline_tag: text-generation",
    ]
    lines = ["---", *front, "---", "", f"# {path.name}", ""]
    lines += ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in facts(path, found).items()), ""]
    lines += [*parts(found), "", *usage(path)]
    return "\n".join(lines) + "\n"


def facts(path: Path, found: Inspection) -> dict[str, str]:
    """What the first table says, by its left column."""
    config, source, licence = found.config, found.source, found.source.get("license")
    shape = f"{config['n_layer']} layers, width {config['d_model']}, {found.vocab_size:,} tokens"
    words = [
        w for w, has in (("a tokenizer", found.has_tokenizer), ("a chat template", found.has_chat_template)) if has
    ]
    return {
        "model": f"{found.family}, {shape}, {found.parameters:,} parameters",
        "source": f"{source.get('name') or 'unknown'}, digest `{source.get('digest') or 'unknown'}`",
        "licence of the source": licence or "the source names none: ask its publisher before you pass this on",
        "recipe": f"{found.recipe.get('name', 'custom')}, {found.bits_per_weight:.2f} bits a weight",
        "brings": " and ".join(words) or "neither a tokenizer nor a chat template",
        "calibrated on": calibration(found),
        "quality": quality(found),
        "file": f"{found.bytes:,} bytes, sha256 `{_sha256(path)}`",
        "packed by": found.producer,
    }


def calibration(found: Inspection) -> str:
    """What the quantizer saw."""
    c = found.calibration
    if not c.get("samples"):
        return "not recorded"
    name = f", sha256 `{c['sha256']}`" if c.get("sha256") else ""
    return f"{c['samples']} windows of {c['length']} tokens: {c.get('source') or 'unknown'}{name}, seed {c.get('seed')}"


def quality(found: Inspection) -> str:
    """The perplexities that packing measured."""
    p = found.perplexity
    if p.get("source") is None or p.get("bundle") is None:
        return "not measured"
    lost = p["bundle"] / p["source"] - 1
    told = f"perplexity {p['bundle']:.4f}, that of the source {p['source']:.4f} ({lost:+.2%})"
    return f"{told}, on {p.get('tokens')} held-out tokens; {p.get('convention', 'windows from an empty state')}"


def parts(found: Inspection) -> list[str]:
    """The table of parts."""
    count = lambda n: f"{n:,}" if n else ""
    rows = (f"| {p.name} | {p.scheme} | {count(p.parameters)} | {p.bytes:,} |" for p in found.parts)
    return ["| part | scheme | parameters | bytes |", "| --- | --- | ---: | ---: |", *rows]


def usage(path: Path) -> list[str]:
    """How to check it and talk to it."""
    commands = (f"quamba-edge verify {path.name}", f"quamba-edge run {path.name} --prompt 'Hello'")
    says = "Check the copy (hashes, golden prompts, every op against its definition), then let it talk:"
    return [says, "", *(f"    {c}" for c in commands)]


def _sha256(path: Path) -> str:
    seen = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            seen.update(block)
    return seen.hexdigest()
