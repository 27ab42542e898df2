"""What a bundle says of itself: one JSON object, read strictly.

`parse` returns a Manifest only if everything the runtime relies on is there, well-typed, and consistent with itself; the
same check runs before a bundle is written.  docs/format.md explains every field.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from quamba_edge import layouts, models
from quamba_edge.bundle import expect
from quamba_edge.bundle.expect import Site
from quamba_edge.bundle.header import loads
from quamba_edge.errors import BadBundle, MissingLayout, NewerFormat, QuambaError, WrongArchitecture
from quamba_edge.quant.recipe import Scheme

FORMAT = 1
MAX_SIZE = (
    1 << 32
)  # of any one dimension or id; far above every model, far below what overflows a kernel's 64-bit product
MAX_ELEMENTS = 1 << 44


@dataclass(frozen=True)
class Tensor:
    """A tensor as its readers see it.  `shape` is the logical one; sha256 is over the stored bytes, padding included."""

    dtype: str  # f32 f16 i32 i8 u8 u4
    shape: tuple[int, ...]
    layout: str
    sha256: str

    @property
    def stored(self) -> tuple[str, tuple[int, ...]]:
        """(dtype, shape) in the file."""
        return layouts.stored_spec(self.layout, self.dtype, self.shape)

    @property
    def loaded_bytes(self) -> int:
        """Bytes as kernels read it: those in the file, unless it is stored narrower."""
        dtype, shape = layouts.stored_spec(layouts.as_read(self.layout), self.dtype, self.shape)
        return math.prod(shape) * layouts.itemsize(dtype)

    @classmethod
    def from_json(cls, name: str, raw: Any) -> Tensor:
        where = f"tensors[{name!r}]"
        raw = _typed(raw, dict, where)
        dtype, layout, sha256 = (_typed(raw.get(k), str, f"{where}.{k}") for k in ("dtype", "layout", "sha256"))
        if layout not in layouts.LAYOUTS:
            known = ", ".join(layouts.LAYOUTS)
            raise MissingLayout(f"{name} lies in layout {layout!r}, this version reads {known}: upgrade quamba_edge")
        shape = tuple(_natural(n, f"{where}.shape", least=1) for n in _typed(raw.get("shape"), list, f"{where}.shape"))
        if not 1 <= len(shape) <= 4 or math.prod(shape) > MAX_ELEMENTS or (layout != "row" and len(shape) != 2):
            raise _bad(f"{where}.shape is {list(shape)}", "1 to 4 sizes (2 but in layout row), of a plausible product")
        if dtype not in layouts.LAYOUTS[layout].dtypes:
            raise _bad(
                f"{where}.dtype is {dtype!r}", f"one of {', '.join(layouts.LAYOUTS[layout].dtypes)} in layout {layout}"
            )
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise _bad(f"{where}.sha256 is {sha256!r}", "64 hexadecimal digits")
        return cls(dtype, shape, layout, sha256)


@dataclass(frozen=True)
class Manifest:
    """Fields in the order of the JSON.

    config       JSON object of the family's Config
    sites        {site: {N, K, bits, group, act, method}}; "head" is there also when tied
    tensors      in file order; left empty for `writer.assemble`, which fills it
    vocab_size   ids below it may be sampled; the matrices may have more rows
    golden       [{prompt: [ids], tokens: [ids], top: [[id, logit], ...]}]: greedy tokens, and the largest logits of the first
    tokenizer    {eos: [ids], bos: id or None}
    """

    producer: str
    family: str
    config: dict[str, Any]
    recipe: dict[str, Any]
    sites: dict[str, Site]
    vocab_size: int
    rotate: bool
    calibration: dict[str, Any]
    perplexity: dict[str, Any]
    golden: list[dict[str, Any]]
    source: dict[str, Any]
    tokenizer: dict[str, Any]
    chat_template: str | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    format: int = FORMAT

    def text(self) -> str:
        """The JSON text as it stands in the file.  BadBundle if something in it has no JSON form."""
        raw = {f.name: getattr(self, f.name) for f in fields(self)}
        raw["tensors"] = {
            n: {"dtype": t.dtype, "shape": list(t.shape), "layout": t.layout, "sha256": t.sha256}
            for n, t in self.tensors.items()
        }
        try:
            text = json.dumps(
                {"format": raw.pop("format"), **raw}, ensure_ascii=False, allow_nan=False, separators=(",", ":")
            )
            text.encode()
        except (TypeError, ValueError) as e:
            raise BadBundle(f"manifest: {e}; only finite numbers and whole characters can be stored") from None
        return text

    def check(self) -> Any:
        """The family's Config, after making sure that sites and tensors are those of such a model.

        Raises BadBundle naming the field, WrongArchitecture, MissingLayout.
        """
        if self.family not in models.known():
            known = ", ".join(models.known())
            raise WrongArchitecture(
                f"the bundle's model is of family {self.family!r}, this version runs {known}: upgrade quamba_edge"
            )
        try:
            config = models.find(self.family, "config").Config.from_json(self.config)
        except QuambaError as e:
            raise BadBundle(f"manifest: {e}") from None
        self._check_sites(config)
        for name, wanted in expect.tensors(self.family, config, self.sites):
            self._check_tensor(name, wanted)
        if not 1 <= self.vocab_size <= config.vocab_size:
            raise _bad(f"vocab_size is {self.vocab_size}", f"1 to {config.vocab_size}, the rows of the embedding")
        ids = [i for g in self.golden for i in (*g["prompt"], *g["tokens"], *(pair[0] for pair in g["top"]))]
        if ids and max(ids) >= config.vocab_size:
            raise _bad(f"golden has token {max(ids)}", f"ids below {config.vocab_size}")
        return config

    def _check_sites(self, config: Any) -> None:
        expected: set[str] = set()
        for name, shape in expect.sites(self.family, config):
            site = self.sites.get(name)
            if site is None:
                raise _bad(f"sites has no {name!r}", f"one of {shape[0]} x {shape[1]}")
            if (site["N"], site["K"]) != shape:
                raise _bad(f"sites[{name!r}] is {site['N']} x {site['K']}", f"{shape[0]} x {shape[1]}, as config says")
            expected.add(name)
        if set(self.sites) != expected:
            raise _bad(
                f"sites has {min(set(self.sites) - expected)!r}",
                f"only those of a {self.family} model of {config.n_layer} layers",
            )
        head, embedding = self.sites["head"], self.sites["embedding"]
        if config.tie_embeddings and (head["bits"], head["group"]) != (embedding["bits"], embedding["group"]):
            raise _bad("head and embedding differ in bits or group", "one scheme, since they share a matrix")

    def _check_tensor(self, name: str, wanted: expect.Wanted) -> None:
        found = self.tensors.get(name)
        size = f"{wanted.dtype} {list(wanted.shape)} in layout {wanted.layout}"
        if found is None:
            if wanted.needed == 1:
                raise _bad(f"there is no tensor {name}", size)
        elif wanted.needed < 0:
            raise _bad(f"there is a tensor {name}", "none, since config and sites give it no use")
        elif (found.dtype, found.shape, found.layout) != (wanted.dtype, wanted.shape, wanted.layout):
            raise _bad(f"tensor {name} is {found.dtype} {list(found.shape)} in layout {found.layout}", size)


def digest(text: str) -> str:
    """Hex sha256 of a manifest's text: the bundle's digest, since the manifest has every tensor's hash."""
    return hashlib.sha256(text.encode()).hexdigest()


def parse(text: str) -> Manifest:
    """A manifest from its JSON text, every field typed; `check` does the rest.

    Raises NewerFormat, MissingLayout, BadBundle naming the field.  Fields it does not know are ignored.
    """
    raw = _typed(loads(text, "manifest"), dict, "the whole")
    version = _natural(raw.get("format"), "format", least=1)
    if version > FORMAT:
        raise NewerFormat(f"the bundle has format {version}, this version reads up to {FORMAT}: upgrade quamba_edge")
    take: dict[str, Any] = {k: _typed(raw.get(k), str, k) for k in ("producer", "family")}
    take |= {
        k: _typed(raw.get(k), dict, k) for k in ("config", "recipe", "calibration", "perplexity", "source", "tokenizer")
    }
    take["vocab_size"] = _natural(raw.get("vocab_size"), "vocab_size", least=1)
    take["rotate"] = _typed(raw.get("rotate"), bool, "rotate")
    take["chat_template"] = _optional(raw.get("chat_template"), str, "chat_template")
    for key in ("source", "bundle"):
        if take["perplexity"].get(key) is not None:
            _number(take["perplexity"][key], f"perplexity.{key}")
    if take["perplexity"].get("state_i8") is not None:
        drift = _typed(take["perplexity"]["state_i8"], dict, "perplexity.state_i8")
        _number(drift.get("kl"), "perplexity.state_i8.kl")
    for key in ("name", "digest", "license"):
        _optional(take["source"].get(key), str, f"source.{key}")
    _ids(take["tokenizer"].get("eos"), "tokenizer.eos")
    if take["tokenizer"].get("bos") is not None:
        _natural(take["tokenizer"]["bos"], "tokenizer.bos")
    take["sites"] = {name: _site(name, s) for name, s in _typed(raw.get("sites"), dict, "sites").items()}
    take["golden"] = [_golden(g, f"golden[{i}]") for i, g in enumerate(_typed(raw.get("golden"), list, "golden"))]
    take["tensors"] = {n: Tensor.from_json(n, t) for n, t in _typed(raw.get("tensors"), dict, "tensors").items()}
    return Manifest(**take, format=version)


def _site(name: str, raw: Any) -> Site:
    where = f"sites[{name!r}]"
    raw = _typed(raw, dict, where)
    sizes = {k: _natural(raw.get(k), f"{where}.{k}", least=1) for k in ("N", "K", "bits", "group", "act")}
    method = _typed(raw.get("method"), str, f"{where}.method")
    try:
        Scheme(sizes["bits"], sizes["act"], sizes["group"], method)
    except QuambaError as e:
        raise BadBundle(f"manifest: {where}: {e}") from None
    return Site(N=sizes["N"], K=sizes["K"], bits=sizes["bits"], group=sizes["group"], act=sizes["act"], method=method)


def _golden(raw: Any, where: str) -> dict[str, Any]:
    raw = _typed(raw, dict, where)
    for pair in _typed(raw.get("top"), list, f"{where}.top"):
        if not isinstance(pair, list) or len(pair) != 2:
            raise _bad(f"{where}.top has {pair!r:.40}", "pairs [id, logit]")
        _natural(pair[0], f"{where}.top")
        _number(pair[1], f"{where}.top")
    if not _ids(raw.get("prompt"), f"{where}.prompt"):
        raise _bad(f"{where}.prompt is empty", "at least one id")
    _ids(raw.get("tokens"), f"{where}.tokens")
    return raw


def _bad(found: str, expected: str) -> BadBundle:
    return BadBundle(f"manifest: {found}, expected {expected}: pack it again")


def _typed(value: Any, kind: type, where: str) -> Any:
    if type(value) is not kind:
        names: Mapping[type, str] = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
        raise _bad(f"{where} is {'missing' if value is None else _short(value)}", names[kind])
    return value


def _optional(value: Any, kind: type, where: str) -> Any:
    return None if value is None else _typed(value, kind, where)


def _natural(value: Any, where: str, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= MAX_SIZE:
        raise _bad(
            f"{where} is {'missing' if value is None else _short(value)}", f"an integer from {least} to {MAX_SIZE}"
        )
    return value


def _number(value: Any, where: str) -> None:
    if type(value) not in (int, float):
        raise _bad(f"{where} is {_short(value)}", "a number")


def _ids(value: Any, where: str) -> list[int]:
    return [_natural(i, where) for i in _typed(value, list, where)]


def _short(value: Any) -> str:
    return "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else f"{value!r:.40}"
