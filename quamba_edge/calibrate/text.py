"""Token windows to calibrate on: from the user's file, or sampled from the model itself when there is none."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from quamba_edge.errors import BadCheckpoint, BadText

LIMIT = 2_000_000  # characters made into tokens, half a million or so; of a longer text, pieces from all over
HELD_OUT = 0.05  # share of the text kept for measuring perplexity, at its end


class Draw(NamedTuple):
    """How much to take: `samples` windows of `length` tokens to calibrate on, `held` to measure on; by which seed."""

    samples: int
    length: int
    held: int
    seed: int


@dataclass(frozen=True)
class Windows:
    """Token ids: `calib` (S, L) to calibrate on, `held` (T, L) to measure on, and the record for the manifest."""

    calib: np.ndarray
    held: np.ndarray
    record: dict[str, Any] = field(default_factory=dict)


def digest(path: Path) -> str:
    """Hex sha256 of a text file; BadText when it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as e:
        raise BadText(f'{path}: {e.strerror}; give a text file or JSON lines with "text"') from None


def read_documents(path: Path) -> list[str]:
    """Plain text is one document; of JSON lines, each gives its "text", or its "messages" joined as they stand.  Either may be gzipped."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as e:
        raise BadText(
            f'{path}: cannot be read as UTF-8 text ({e}); give a text file or JSON lines with "text"'
        ) from None
    if path.name.removesuffix(".gz").rpartition(".")[2] not in ("jsonl", "json"):
        return [text]
    documents = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON strings may hold U+2028 as it is
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            document = entry["text"] if "text" in entry else "\n".join(m["content"] for m in entry["messages"])
            if not isinstance(document, str):
                raise TypeError
            documents.append(document)
        except (ValueError, KeyError, TypeError):
            raise BadText(
                f'{path}, line {number}: expected an object with a string "text", or "messages" with string contents'
            ) from None
    return documents


def cut_windows(ids: np.ndarray, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    """Random windows of the first part of ids to calibrate on, evenly spaced ones of the rest to measure on."""
    samples, length, held, seed = draw
    kept = max(held * length, int(len(ids) * HELD_OUT)) if held else 0
    kept = min(kept, len(ids) // 4)
    head, tail = ids[: len(ids) - kept], ids[len(ids) - kept :]
    if len(head) < length or (held and len(tail) < length):
        raise BadText(
            f"the calibration text has {len(ids)} tokens; {length} per window need at least {4 * length + 4}: give more text or a smaller --calib-len"
        )
    starts = np.random.default_rng(seed).integers(0, len(head) - length + 1, samples)
    calib = np.stack([head[s : s + length] for s in starts])
    count = min(held, len(tail) // length)
    spots = np.linspace(0, len(tail) - length, count).astype(int)
    return calib, np.stack([tail[s : s + length] for s in spots]) if count else np.empty((0, length), ids.dtype)


def thin(text: str, limit: int = LIMIT, pieces: int = 256) -> str:
    """A long text cut down to about `limit` characters: evenly spaced pieces, each from a space or line break on."""
    if len(text) <= limit:
        return text
    size = limit // pieces
    kept = []
    for start in np.linspace(0, len(text) - size, pieces).astype(int):
        piece = text[start : start + size]
        at = next((i for i, c in enumerate(piece) if c.isspace()), 0) if start else 0
        kept.append(piece[at:])
    return "".join(kept)


def from_file(path: Path, encode: Any, vocab_size: int, draw: Draw) -> Windows:
    """Windows of the user's text; `encode` turns a string into ids."""
    documents = read_documents(path)
    every = max(1, sum(map(len, documents)) // max(LIMIT, *map(len, documents), 1))  # of very many documents, a part
    pieces = [np.asarray(encode(thin(d)), np.int64) for d in documents[::every]]
    ids = np.concatenate(pieces or [np.empty(0, np.int64)])
    if len(ids) and ids.max() >= vocab_size:
        raise BadText(
            f"the tokenizer gives id {ids.max()}, the model has {vocab_size} rows: this tokenizer is not the model's"
        )
    calib, rest = cut_windows(ids, draw)
    return Windows(calib, rest, {"source": path.name, "sha256": digest(path), "tokens_read": len(ids)})


@torch.no_grad()
def from_model(lm: Any, first: int, vocab_size: int, draw: Draw, progress: Any = None) -> Windows:
    """Text that the model itself writes at temperature 1, starting from token `first`; no download, nobody's data.

    lm is the reference LM; all samples + held sequences advance together, one token at a time.
    """
    samples, length, held, seed = draw
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((samples + held, 1), first, dtype=torch.long)
    token, states, out = ids, None, [ids]
    for step in range(length - 1):
        logits, states = lm(token, states)
        weights = logits[:, -1, :vocab_size].float().softmax(-1)
        if not torch.isfinite(weights).all():
            raise BadCheckpoint(
                f"the source model's own logits are not finite at token {step + 1} of its text: its weights are too large for f32"
            )
        token = torch.multinomial(weights, 1, generator=generator)
        out.append(token)
        if progress is not None:
            progress(step + 1, length - 1, "sampling text from the model")
    text = torch.cat(out, 1).numpy()
    return Windows(
        text[:samples],
        text[samples:],
        {
            "source": "sampled from the model",
            "sha256": hashlib.sha256(text.tobytes()).hexdigest(),
            "first_token": first,
        },
    )
