"""The winner of a search as a bundle: the very tensors that were measured, under a manifest that says what they do together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from quamba_edge.bundle.reader import Bundle
from quamba_edge.bundle.writer import amend
from quamba_edge.pack import default_eval_tokens, measured
from quamba_edge.quant.recipe import Recipe
from quamba_edge.search.space import Assignment
from quamba_edge.search.store import Store, lone


def write(store: Store, given: Assignment, recipe: Recipe, parameters: int) -> Path:
    """The bundle best.qedge of an assignment in the store's folder, measured as `pack` measures; left alone where it is there already.

    Raises as `pack.measured` and `writer.amend`.
    """
    path, draft = store.folder / "best.qedge", store.folder / "draft.qedge"
    windows, length = store.source.tokens.shape
    count = min(windows, max(1, default_eval_tokens(parameters, length) // length))
    with lone(store.folder):
        if not _is_there(path, recipe):
            mix = store.mix(given)
            mix.write(draft, lambda m: replace(m, recipe=recipe.to_json()))
            try:
                held, nll = store.source.tokens[:count], float(store.source.nll[:count].mean())
                found = measured(draft, mix.manifest, held, nll, parameters)
                amend(draft, lambda m: replace(m, perplexity=found.perplexity, golden=found.golden), path)
            finally:
                draft.unlink(missing_ok=True)
    return path


def _is_there(path: Path, recipe: Recipe) -> bool:
    if not path.is_file():
        return False
    with Bundle.open(path, verify=False) as found:
        return bool(found.manifest.recipe == recipe.to_json())
