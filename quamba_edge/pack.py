"""`quamba-edge pack`: checkpoint in, one bundle out, measured before it gets its name.

    quantize (parts in OUT.work/) → assemble → run it: golden prompts, perplexity → assemble with what was measured

Equal inputs give equal bytes.  An interrupted run keeps OUT.work/ and continues with `resume`.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quamba_edge import __version__
from quamba_edge.bundle.manifest import FORMAT, Manifest
from quamba_edge.bundle.reader import Bundle
from quamba_edge.bundle.writer import amend, assemble
from quamba_edge.calibrate.text import Draw, digest
from quamba_edge.checkpoint import open_checkpoint
from quamba_edge.checkpoint.hub import read_text
from quamba_edge.errors import BadBundle, BadUsage, CheckFailed
from quamba_edge.profile.memory import peak_rss
from quamba_edge.quant import recipe as recipes
from quamba_edge.quant.layer import check_recipe
from quamba_edge.quant.walk import Progress, parameter_count, quantize_parts, source_nll, token_windows
from quamba_edge.quant.work import Work
from quamba_edge.runtime.chat_template import render
from quamba_edge.runtime.drift import state_drift
from quamba_edge.runtime.session import Engine, Session
from quamba_edge.runtime.tokenizer import Tokenizer

SMALL = 1_000_000_000  # parameters; below, embedding and head keep 8 bits
MOST_NATS = 700.0  # a token; e to the power of more is no float, and the model is noise long before
GOLDEN_PROMPT = 16  # tokens


@dataclass(frozen=True)
class PackResult:
    """What `quamba-edge pack` reports.  Perplexities are per token of the held-out windows; bits_per_weight counts
    everything in the bundle but the tokenizer, over the source's parameters."""

    bundle: str
    bytes: int
    seconds: float
    peak_rss_bytes: int
    perplexity_source: float | None
    perplexity_bundle: float | None
    source_bytes: int
    parameters: int
    bits_per_weight: float
    has_tokenizer: bool


def pack(
    checkpoint_path: str | Path,
    out: Path,
    recipe: str = "w4a8",
    calib: Path | None = None,
    calib_samples: int | None = None,
    calib_len: int | None = None,
    method: str | None = None,
    seed: int = 0,
    resume: bool = False,
    tokenizer: str | Path | None = None,
    chat_template: Path | None = None,
    eval_tokens: int | None = None,
    progress: Progress = lambda done, total, text: None,
) -> PackResult:
    """Quantize a checkpoint and write the bundle `out`.

    recipe  a shipped name or a JSON file        calib  text or JSON lines; None: text sampled from the model itself
    method  "gptq" or "rtn" for every site; None: as the recipe says
    eval_tokens  held-out tokens to measure perplexity on; None: 4096, less for large models, whose numpy run is slow

    Raises errors.QuambaError subclasses.  On KeyboardInterrupt OUT.work/ stays for `resume`.
    """
    began = time.monotonic()
    length = 512 if calib_len is None else calib_len
    samples = 128 if calib_samples is None else calib_samples
    for name, value, least in (
        ("calib-samples", samples, 1),
        ("calib-len", length, 2),
        ("eval-tokens", eval_tokens, 0),
    ):
        if value is not None and value < least:
            raise BadUsage(f"--{name} is {value}: expected {least} or more")
    if not 0 <= seed < 1 << 32:
        raise BadUsage(f"--seed is {seed}: expected 0 to {(1 << 32) - 1}")
    checkpoint = open_checkpoint(checkpoint_path, tokenizer=tokenizer)
    parameters = parameter_count(checkpoint)
    chosen = recipes.load(recipe, small=parameters < SMALL, n_layer=checkpoint.config.n_layer)
    if method is not None:
        chosen = chosen.with_method(method)
    check_recipe(chosen, checkpoint.family, checkpoint.config)
    if eval_tokens is None:
        eval_tokens = default_eval_tokens(parameters, length)
    template = checkpoint.chat_template if chat_template is None else read_template(chat_template)
    draw = Draw(samples, length, math.ceil(eval_tokens / length), seed)
    job = {
        "checkpoint": checkpoint.digest,
        "recipe": chosen.to_json(),
        "calib": None if calib is None else digest(calib),
        "windows": list(draw),
        "tokenizer": hashlib.sha256((checkpoint.tokenizer_json or "").encode()).hexdigest(),
        "version": __version__,
    }
    out = Path(out)
    words = Tokenizer(checkpoint.tokenizer_json) if checkpoint.tokenizer_json else None
    work = Work(out.with_name(out.name + ".work"), job, resume)
    windows = token_windows(work, checkpoint, calib, words, draw, progress)
    sites, parts = quantize_parts(work, checkpoint, chosen, windows, progress)
    manifest = describe(checkpoint, words, chosen, sites, windows.record, draw, template)
    total = checkpoint.config.n_layer + 2
    progress(total, total, "measuring the bundle")
    draft = work.folder / "draft.qedge"
    assemble(draft, manifest, parts)
    manifest = measured(draft, manifest, windows.held, source_nll(work), parameters)
    amend(draft, lambda plain: replace(plain, perplexity=manifest.perplexity, golden=manifest.golden), out)
    with Bundle.open(out, verify=False) as bundle:
        weight_bytes = sum(place.nbytes for name, place in bundle.places.items() if name != "tokenizer.json")
    shutil.rmtree(work.folder)
    return PackResult(
        str(out),
        out.stat().st_size,
        time.monotonic() - began,
        peak_rss(),
        manifest.perplexity["source"],
        manifest.perplexity["bundle"],
        checkpoint.bytes,
        parameters,
        8 * weight_bytes / parameters,
        words is not None,
    )


def default_eval_tokens(parameters: int, length: int) -> int:
    """Held-out tokens that a bundle is measured on: one window of large models, whose numpy run is slow."""
    return 4096 if parameters < SMALL // 4 else length


def read_template(path: Path) -> str:
    """A chat template, tried on one message: BadCheckpoint if it cannot be read, BadBundle if it is wrong."""
    template = read_text(path)
    try:
        render(template, [{"role": "user", "content": "Hello"}])
    except BadBundle as e:
        raise BadBundle(f"{path}: {e}") from None
    except BadUsage:
        pass  # it rejects this conversation, and may take others
    return template


def describe(
    checkpoint: Any,
    words: Tokenizer | None,
    recipe: recipes.Recipe,
    sites: dict[str, Any],
    record: dict[str, Any],
    draw: Draw,
    template: str | None,
) -> Manifest:
    """The manifest of a bundle that has not been run yet."""
    return Manifest(
        format=FORMAT,
        producer=f"quamba_edge {__version__}",
        family=checkpoint.family,
        config=checkpoint.config.to_json(),
        recipe=recipe.to_json(),
        sites=sites,
        vocab_size=checkpoint.config.true_vocab_size,
        rotate=recipe.rotate,
        calibration={**record, "samples": draw.samples, "length": draw.length, "seed": draw.seed},
        perplexity={"source": None, "bundle": None, "tokens": 0},
        golden=[],
        source={"name": checkpoint.name, "digest": checkpoint.digest, "license": checkpoint.license},
        tokenizer={"eos": words.eos_ids(), "bos": words.bos_id()} if words else {"eos": [], "bos": None},
        chat_template=template,
    )


def measured(draft: Path, manifest: Manifest, held: np.ndarray, nll: float | None, parameters: int) -> Manifest:
    """The manifest with what the bundle does: perplexity of the held-out windows, what int8 states would cost there (not for large
    models, whose numpy run is slow), and what it says greedily."""
    perplexity: dict[str, Any] = {"source": None, "bundle": None, "tokens": 0}
    with Bundle.open(draft, verify=False) as bundle:
        engine = Engine(bundle, backend="reference")
        if len(held) and nll is not None:
            scores = engine.score(held)
            if not np.isfinite(scores).all():
                raise CheckFailed(
                    "the packed model's logits are not finite on the held-out text, so it is not kept: its activations outgrow f16; "
                    "try --recipe w8a8"
                )
            perplexity = {
                "source": math.exp(min(nll, MOST_NATS)),
                "bundle": math.exp(min(-scores.mean(), MOST_NATS)),
                "tokens": scores.size,
                "state_i8": state_drift(bundle, held) if parameters < SMALL // 4 else None,
                "convention": f"windows of {held.shape[1]} tokens, each from an empty state, the first token not scored",
            }
        prompt = [int(t) for t in (held[0, :GOLDEN_PROMPT] if len(held) else range(1, GOLDEN_PROMPT + 1))]
        count = 32 if parameters < SMALL // 4 else 4
        golden = [golden_prompt(engine, prompt, count)]
    return replace(manifest, perplexity=perplexity, golden=golden)


def golden_prompt(engine: Engine, prompt: list[int], count: int) -> dict[str, Any]:
    """Greedy tokens after `prompt`, and the five largest logits of the first of them."""
    session = Session(engine)
    logits = session.prefill(prompt)
    first = [[int(i), float(logits[i])] for i in np.argsort(-logits, kind="stable")[:5]]
    tokens = [int(logits.argmax())]
    while len(tokens) < count:
        tokens.append(int(session.decode(tokens[-1]).argmax()))
    return {"prompt": prompt, "tokens": tokens, "top": first}
