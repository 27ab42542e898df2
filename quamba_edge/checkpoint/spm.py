"""A SentencePiece model as the tokenizer.json that bundles carry: the same ids for the same text.

NVIDIA's 8B and Mistral's Codestral-Mamba come with one.  The file is a protocol buffer (sentencepiece_model.proto): pieces in the
order of their ids, and how text is normalized before.  Both algorithms have their like in `tokenizers`: Unigram takes pieces and
scores as they are; BPE wants pairs in order, which are the ways of cutting each piece into two others, those of the best score first.

Text becomes what SentencePiece's encode() makes of it.  Unlike there, spelled control tokens such as "[INST]" become their ids;
what follows one, or a user-defined symbol, begins like a text of its own, as mistral-common has it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quamba_edge.errors import BadCheckpoint

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # a piece's type
UNIGRAM, BPE = 1, 2
MISTRAL = re.compile(r"\.model\.v\d+$")  # how Mistral's files are called, whose texts all begin with <s>


@dataclass(frozen=True)
class Piece:
    text: str
    score: float
    type: int


@dataclass(frozen=True)
class Model:
    """What of a SentencePiece model counts for encoding; field numbers in `parse`."""

    pieces: list[Piece]
    algorithm: int
    byte_fallback: bool
    charsmap: bytes
    dummy_prefix: bool
    one_space: bool


def beside(folder: Path) -> Path | None:
    """The tokenizer in a checkpoint folder: tokenizer.json, else its only SentencePiece model, else None."""
    if (folder / "tokenizer.json").is_file():
        return folder / "tokenizer.json"
    found = sorted(p for p in folder.iterdir() if p.is_file() and is_model(p))
    if len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise BadCheckpoint(f"{folder}: has {names}: which is the tokenizer?  Say so with --tokenizer FILE")
    return found[0] if found else None


def is_model(path: Path) -> bool:
    """Whether a file is called like a SentencePiece model: NAME.model, or Mistral's tokenizer.model.v3."""
    return path.name.endswith(".model") or MISTRAL.search(path.name) is not None


def tokenizer_json(path: Path) -> str:
    """The text of a tokenizer.json that encodes as the SentencePiece model `path` does; BadCheckpoint if it is none."""
    try:
        model = parse(path.read_bytes())
    except (OSError, ValueError, struct.error) as e:
        raise BadCheckpoint(f"{path}: not a SentencePiece model ({e}); copy or download it again") from None
    if model.algorithm not in (UNIGRAM, BPE):
        raise BadCheckpoint(f"{path}: a SentencePiece model of words or characters, expected Unigram or BPE")
    return convert(model, MISTRAL.search(path.name) is not None)


def parse(data: bytes) -> Model:
    """The protocol buffer; ValueError for bytes that are none."""
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            raw = dict(_fields(value))
            text, score, kind = raw.get(1, b""), raw.get(2, bytes(4)), raw.get(3, NORMAL)
            if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
                raise ValueError(f"piece {len(pieces)} is no text, score and type")
            pieces.append(Piece(text.decode(), struct.unpack("<f", score)[0], kind))
        elif number in (2, 3) and isinstance(value, bytes):
            (trainer if number == 2 else normalizer).update(_fields(value))
    charsmap = normalizer.get(2, b"")
    if not pieces or not isinstance(charsmap, bytes):
        raise ValueError("it has no pieces")
    if trainer.get(24) or not normalizer.get(5, 1):
        raise ValueError("it puts spaces behind words, or leaves them as they are, which is not supported")
    return Model(
        pieces=pieces,
        algorithm=int(trainer.get(3, UNIGRAM)),
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=charsmap,
        dummy_prefix=bool(normalizer.get(3, 1)),
        one_space=bool(normalizer.get(4, 1)),
    )


def convert(model: Model, begins: bool = False) -> str:
    """tokenizer.json's text; with `begins` every text begins with <s>, which the model itself does not say."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors

    unknown = next((i for i, p in enumerate(model.pieces) if p.type == UNKNOWN), None)
    ids = {p.text: i for i, p in enumerate(model.pieces)}
    if model.algorithm == UNIGRAM:
        scored = [(p.text, p.score) for p in model.pieces]
        tokenizer = Tokenizer(models.Unigram(scored, unk_id=unknown, byte_fallback=model.byte_fallback))
    else:
        unk = None if unknown is None else model.pieces[unknown].text
        bpe = models.BPE(ids, _merges(model.pieces), unk_token=unk, fuse_unk=True, byte_fallback=model.byte_fallback)
        tokenizer = Tokenizer(bpe)
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.one_space:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend(SPACE)] if model.dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(back + ([decoders.Strip(" ", 1, 0)] if model.dummy_prefix else []))
    exact = {"normalized": False}  # looked for in the text as it is given
    tokenizer.add_special_tokens([AddedToken(p.text, **exact) for p in model.pieces if p.type == CONTROL])
    tokenizer.add_tokens([AddedToken(p.text, **exact) for p in model.pieces if p.type == USER_DEFINED])
    if begins and "<s>" in ids:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    return str(tokenizer.to_str())


def _merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes another, best score first."""
    words = {p.text for p in pieces if p.type in (NORMAL, USER_DEFINED)}
    order = sorted((p for p in pieces if p.type == NORMAL), key=lambda p: -p.score)
    cuts = ((p.text[:i], p.text[i:]) for p in order for i in range(1, len(p.text)))
    return [(a, b) for a, b in cuts if a in words and b in words]


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a protocol buffer message; fixed-size numbers are given as their bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise ValueError(f"a number runs over the end at byte {at}")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}.get(kind, -1)
        if size < 0 or at + size > len(data):
            raise ValueError(f"a field of kind {kind} and {size} bytes at byte {at} of {len(data)}")
        yield key >> 3, data[at : at + size]
        at += size
