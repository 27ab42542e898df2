"""The folder OUT.work/ in which a packing job keeps what is finished, so that a stopped one can go on.

job.json         what job it is: a resumed run must be the same one
windows.*        its token windows
part-*           finished pieces of the bundle
streams-N.npz    the hidden states after N layers
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from quamba_edge.bundle.writer import plainly, replacing
from quamba_edge.errors import BadUsage

OURS = re.compile(r"\.?(job|windows|part|streams|draft)\b.*")  # names of files in the folder, unfinished ones too


class Streams(NamedTuple):
    """Hidden states that go along the walk, each (windows, L, D).

    stream  of the quantized model, on the calibration windows
    exact   of the source, on the held-out windows
    source  of the source, on the calibration windows, where the recipe's `repair` wants it
    """

    stream: torch.Tensor
    exact: torch.Tensor
    source: torch.Tensor | None = None


class Work:
    """The folder OUT.work/: what job it is, its token windows, finished parts, and the streams after the last of them."""

    def __init__(self, folder: Path, job: dict[str, Any], resume: bool):
        self.folder, note = folder, folder / "job.json"
        foreign = _foreign(folder)
        if foreign is not None:
            raise BadUsage(
                f"{foreign} is in the place where packing keeps its unfinished parts, and is none: move it away, or choose another -o"
            )
        found = _read(note)
        if resume and found != job:
            changed = (
                "there is none"
                if found is None
                else "it differs in " + ", ".join(k for k in job if found.get(k) != job[k])
            )
            raise BadUsage(
                f"--resume: no unfinished job like this in {folder} ({changed}); run without --resume to start anew"
            )
        if not resume and found == job and any(folder.glob("part-*")):
            raise BadUsage(
                f"{folder} holds finished layers of this very job: add --resume to go on, or delete the folder"
            )
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        with plainly(folder):
            folder.mkdir(exist_ok=True)
        with replacing(note) as f:
            f.write(json.dumps(job).encode())

    def part(self, name: str) -> Path:
        """Where the finished tensors of a piece ("embedding", "layer-003", "head") are kept."""
        return self.folder / f"part-{name}"

    def save_streams(self, stage: int, streams: Streams) -> None:
        """Keep the streams as they are after `stage` layers, instead of those of an earlier stage."""
        path = self.folder / f"streams-{stage}.npz"
        with replacing(path) as f:
            np.savez(f, **{name: s.numpy() for name, s in streams._asdict().items() if s is not None})
        for old in self._streams():
            if old != path:
                old.unlink()

    def load_streams(self) -> tuple[int, Streams] | None:
        """(layers done, streams), or None if the embedding is yet to be done."""
        saved = self._streams()
        if not saved:
            return None
        with np.load(saved[-1]) as arrays:
            streams = Streams(**{name: torch.from_numpy(arrays[name]) for name in arrays})
        return _stage(saved[-1]), streams

    def _streams(self) -> list[Path]:
        """Saved streams, the latest stage last; two for a moment while one replaces the other."""
        return sorted(self.folder.glob("streams-*.npz"), key=_stage)


def _stage(streams: Path) -> int:
    return int(streams.stem.split("-")[1])


def _foreign(folder: Path) -> Path | None:
    """The folder if it is something else, or what is in it that no job has put there: it must not be deleted."""
    if folder.exists() and not folder.is_dir():
        return folder
    return next((p for p in sorted(folder.glob("*")) if not OURS.fullmatch(p.name)), None)


def _read(note: Path) -> dict[str, Any] | None:
    """The job of a note; None where there is none that can be read."""
    try:
        found = json.loads(note.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None
