"""The folder of a search: the model packed once in every mode that a layer may have, and what the source predicts.

    w4a8.qedge, w4a16.qedge, ...   uniform bundles; a trial takes each layer from one of them (search/mix.py)
    ends-w4a8.qedge                embedding and head in a mode that no uniform bundle has them in
    text.work/                     the token windows: to calibrate on, and to measure on
    source-*.npy                   search/source.py
    study.journal                  search/study.py
    best.qedge                     search/winner.py

Whoever comes second to an unfinished folder waits for the first.  The bundles run like any other, so that `bench --profile` on a board
gives the cost table of the search.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quamba_edge import __version__
from quamba_edge.bundle.reader import Bundle
from quamba_edge.bundle.writer import assemble, plainly, replacing
from quamba_edge.calibrate.text import Draw, Windows, digest
from quamba_edge.errors import BadUsage
from quamba_edge.pack import SMALL, describe
from quamba_edge.quant.layer import check_recipe
from quamba_edge.quant.recipe import Recipe, shipped
from quamba_edge.quant.walk import Progress, parameter_count, quantize_parts, token_windows
from quamba_edge.quant.work import Work
from quamba_edge.runtime.tokenizer import Tokenizer
from quamba_edge.search import source
from quamba_edge.search.mix import Mix
from quamba_edge.search.space import ENDS, Assignment, Choice, end_schemes, mode_schemes

FIXED = "w16a16"  # layers that are not quantized, in the rotated basis


@dataclass(frozen=True)
class Store:
    """bundles by name: a mode, or "ends-" and a mode; `ends` says which of them has embedding and head in a mode."""

    folder: Path
    bundles: dict[str, Bundle]
    ends: dict[str, str]
    source: source.Source
    job: dict[str, Any]

    def mix(self, given: Assignment, ends: Mapping[str, str] | None = None) -> Mix:
        """The model of an assignment; `ends` may give "embedding" or "head", where they are two matrices, a mode of its own.

        A site that is fed 8 bits takes the weight of the mode with 16-bit activations where that is here: so choosing activations
        changes nothing else, and a layer's weights are fitted to the layers before it whatever these are fed.
        """
        where = {part: self.ends[(ends or {}).get(part, given[ENDS])] for part in ("embedding", "head")}
        for place, name in given.items():
            if place != ENDS:
                modes = Choice.parse(name).modes
                where[place] = modes["in_proj"]
                for site, mode in modes.items():
                    plain = f"{mode.split('a')[0]}a16"
                    where |= {
                        f"{place}.{site}": mode,
                        f"{place}.{site}.weight": plain if plain in self.bundles else mode,
                    }
        return Mix(self.bundles, where)

    def close(self) -> None:
        for bundle in self.bundles.values():
            bundle.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def is_small(checkpoint: Any) -> bool:
    """Whether embedding and head keep 8 bits, as packing decides it."""
    return parameter_count(checkpoint) < SMALL


def open_store(
    folder: Path,
    checkpoint: Any,
    modes: Sequence[str],
    ends: Sequence[str],
    *,
    calib: Path | None,
    draw: Draw,
    progress: Progress = lambda done, total, text: None,
) -> Store:
    """The store of this checkpoint and text in `folder`; what is missing of it is made.  BadUsage where the folder is another's.

    modes of layers and ends as in search/space.py; `draw` says which windows.
    """
    job = {
        "checkpoint": checkpoint.digest,
        "calib": None if calib is None else digest(calib),
        "windows": list(draw),
        "tokenizer": hashlib.sha256((checkpoint.tokenizer_json or "").encode()).hexdigest(),
        "version": __version__,
    }
    small = is_small(checkpoint)
    recipes = {mode: uniform_recipe(mode, natural_ends(mode, small), small) for mode in modes}
    holders = {natural_ends(mode, small): mode for mode in reversed(modes)}
    for mode in ends:
        if mode not in holders:
            holders[mode] = f"ends-{mode}"
            recipes[holders[mode]] = uniform_recipe(FIXED, mode, small)
    for recipe in recipes.values():
        check_recipe(recipe, checkpoint.family, checkpoint.config)
    with plainly(folder):
        folder.mkdir(exist_ok=True)
    with lone(folder, lambda: progress(0, 1, "waiting for the process that makes the bundles")):
        _claim(folder, job)
        words = Tokenizer(checkpoint.tokenizer_json) if checkpoint.tokenizer_json else None
        windows = token_windows(_work(folder / "text.work", job), checkpoint, calib, words, draw, progress)
        if not len(windows.held):
            raise BadUsage("the text leaves no window to measure on: give more text, or a smaller --calib-len")
        calibrate = replace(windows, held=windows.held[:0])  # the source reads the others, once (search/source.py)
        for name, recipe in recipes.items():
            _packed(folder, name, recipe, job, checkpoint, words, calibrate, draw, progress)
        progress(0, 1, "the source's predictions")
        predicted = source.load(folder, windows.held, checkpoint)
    return Store(folder, {n: Bundle.open(folder / f"{n}.qedge") for n in recipes}, holders, predicted, job)


def natural_ends(mode: str, small: bool) -> str:
    """The ends of a uniform bundle: those of the shipped recipe with its act."""
    chosen = Choice.parse(mode)
    return FIXED if mode == FIXED else f"w{shipped('w4a8', small=small).scheme('head').bits}a{chosen.act}"


def uniform_recipe(mode: str, ends: str, small: bool) -> Recipe:
    """All layers in one mode, rotated also where nothing is quantized, so that any of them can stand beside any other."""
    act = Choice.parse(mode).act
    sites = end_schemes(ends, small)
    for family in ("mamba", "mamba2"):
        sites |= {f"layers.*.{site}": scheme for site, scheme in mode_schemes(mode, family, small).items()}
    return replace(shipped(f"w4a{act}", small=small), name=mode, sites=sites, ssm_act=act)


def _packed(
    folder: Path,
    name: str,
    recipe: Recipe,
    job: dict[str, Any],
    checkpoint: Any,
    words: Tokenizer | None,
    windows: Windows,
    draw: Draw,
    progress: Progress,
) -> None:
    """Write the bundle NAME.qedge, unless it is there; a stopped packing goes on."""
    path = folder / f"{name}.qedge"
    if path.is_file():
        with Bundle.open(path, verify=False) as found:
            if found.manifest.recipe == recipe.to_json():
                return
    work = _work(folder / f"{name}.work", {**job, "recipe": recipe.to_json()})
    told: Progress = lambda done, total, text: progress(done, total, f"{name}: {text}")
    sites, parts = quantize_parts(work, checkpoint, recipe, windows, told)
    manifest = describe(checkpoint, words, recipe, sites, windows.record, draw, checkpoint.chat_template)
    assemble(path, manifest, parts)
    for part in work.folder.iterdir():
        part.unlink()
    work.folder.rmdir()


def _work(folder: Path, job: dict[str, Any]) -> Work:
    """The packing job in `folder`, gone on with where it is the same."""
    note = folder / "job.json"
    return Work(folder, job, resume=note.is_file() and json.loads(note.read_text()) == job)


def _claim(folder: Path, job: dict[str, Any]) -> None:
    """The folder is of this job, or becomes so."""
    note = folder / "job.json"
    if note.is_file():
        found = json.loads(note.read_text())
        if found != job:
            differs = ", ".join(k for k in job if found.get(k) != job[k])
            raise BadUsage(f"{folder} holds a search that differs in {differs}: choose another -o, or delete it")
        return
    with replacing(note) as f:
        f.write(json.dumps(job).encode())


@contextmanager
def lone(folder: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """One process at a time in this folder; the lock goes with the process that holds it."""
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
