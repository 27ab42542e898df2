"""`quamba-edge bench`: how fast a bundle reads and writes here, what that costs, and under which conditions.

Decoding reads all weights for each token, so its ceiling is the bandwidth that the same number of threads reaches when it only
reads; both come from the same run, because machines differ from hour to hour.  profile/speed.py is the measurement,
bench_text.py says it in tables, bench_compare.py sets two side by side, bench_plot.py draws one.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from quamba_edge import __version__, telemetry
from quamba_edge.apps.bench_record import BenchResult
from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import BadUsage
from quamba_edge.profile import speed
from quamba_edge.profile.costs import total
from quamba_edge.profile.memory import peak_rss, reset_peak
from quamba_edge.profile.speed import Repeat
from quamba_edge.profile.stats import summarize
from quamba_edge.runtime.engine import CHUNKS, Engine
from quamba_edge.runtime.plan import arena_sizes
from quamba_edge.runtime.state import state_bytes
from quamba_edge.telemetry import energy
from quamba_edge.telemetry.conditions import Conditions, Watched
from quamba_edge.telemetry.sample import Recorder, Sample, Source

WARM_TOKENS = 16  # decoded before measuring, after one whole prompt: pages mapped, plans recorded, clocks up
ROOFLINE = (
    "bytes_per_token at read_bandwidth; a decode step reads every weight once, of the embedding one row, and reads and "
    "writes the state"
)
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Measured:
    """A result with what it was made of: every repeat, and what telemetry saw meanwhile."""

    result: BenchResult
    runs: tuple[Repeat, ...]
    samples: tuple[Sample, ...]


def bench(path: Path, **options: Any) -> BenchResult:
    """One measurement; options and errors as in `grid`, with plain numbers for prompt_len and batch."""
    renamed = {"prompt_len": "prompt_lens", "batch": "batches"}
    given: dict[str, Any] = {renamed.get(k, k): [v] if k in renamed else v for k, v in options.items()}
    (one,) = grid(path, **given)
    return one.result


def grid(
    path: Path,
    *,
    prompt_lens: Sequence[int] = (512,),
    batches: Sequence[int] = (1,),
    gen_len: int = 128,
    repeats: int = 5,
    backend: str = "auto",
    state_dtype: str = "f16",
    threads: int | None = None,
    seed: int = 0,
    idle_s: float = 0.0,
    source: Source | None = None,
    progress: Progress = lambda done, total, text: None,
) -> list[Measured]:
    """Measure the bundle at `path` for every batch and every length of prompt.

    idle_s: first watch the machine rest so long, model loaded, for joules above idle; it takes 10 s or more to mean anything.
    Errors: BadUsage for numbers under 1, BadBundle and its kinds, Missing for the backend.
    """
    lengths = [("--prompt-len", n) for n in prompt_lens] + [("--batch", n) for n in batches]
    for name, value in (*lengths, ("--gen-len", gen_len), ("--repeats", repeats)):
        if value < 1:
            raise BadUsage(f"{name} is {value}: expected 1 or more")
    if not 0 <= idle_s <= 3600:
        raise BadUsage(f"--idle-s is {idle_s:g}: expected 0 to 3600 seconds, 10 or more to mean anything")
    own = source is None
    watched = source or telemetry.best()
    try:
        with Bundle.open(path) as bundle:
            found, points, idle = [], [(b, n) for b in batches for n in prompt_lens], None
            for number, (batch, prompt_len) in enumerate(points):
                engine = Engine(bundle, backend, state_dtype, threads)
                prompts = np.random.default_rng(seed).integers(
                    0, engine.vocab_size, (batch, prompt_len), dtype=np.int32
                )
                if idle_s > 0 and idle is None:
                    idle = _resting(engine, prompts, watched, idle_s)

                def told(done: int, of: int, text: str, number: int = number) -> None:
                    progress(number * of + done, of * len(points), text)

                found.append(_measure(engine, prompts, gen_len, repeats, watched, idle, seed, told))
            return found
    finally:
        if own:
            watched.close()


def _resting(engine: Engine, prompts: np.ndarray, source: Source, seconds: float) -> float | None:
    """Watts of the machine with the model loaded and nothing running."""
    speed.run(speed.texts(engine, len(prompts)), prompts, 1)
    with Recorder(source) as recorder:
        time.sleep(seconds)
    return energy.idle_watts(recorder.samples()).mean_w


def _measure(
    engine: Engine,
    prompts: np.ndarray,
    gen_len: int,
    repeats: int,
    source: Source,
    idle_w: float | None,
    seed: int,
    progress: Progress,
) -> Measured:
    reset_peak()
    texts, runs = speed.texts(engine, len(prompts)), []
    speed.run(texts, prompts, min(gen_len, WARM_TOKENS))
    with Watched(source) as watched:
        for done in range(repeats):
            progress(done, repeats, "repeats")
            runs.append(speed.run(texts, prompts, gen_len))
    progress(repeats, repeats, "read bandwidth")
    peak = peak_rss()  # before the bandwidth is measured, which takes memory of its own
    copies = getattr(engine.backend, "copy_bandwidth", None)  # of a GPU's own memory
    bandwidth = copies() if copies else read_bandwidth(engine.backend.name, getattr(engine.backend, "threads", None))
    samples = watched.samples()
    joules = _energy(samples, runs, prompts.shape, idle_w)
    made = result(engine, runs, prompts.shape, peak, bandwidth, seed, joules, watched.conditions())
    return Measured(made, tuple(runs), tuple(samples))


def _energy(
    samples: Sequence[Sample], runs: Sequence[Repeat], prompts: tuple[int, int], idle_w: float | None
) -> dict[str, Any]:
    """{"prefill", "decode": joules for each token, "idle_w", "reason": why a figure is missing}."""
    batch, length = prompts
    prefill = energy.per_token(samples, [r.prompt_window for r in runs], len(runs) * batch * length, idle_w)
    answers = sum(len(r.tokens) for r in runs) * batch
    decode = energy.per_token(samples, [r.answer_window for r in runs], answers, idle_w)
    told = {name: {**e.to_json(), "text": energy.text(e)} for name, e in (("prefill", prefill), ("decode", decode))}
    return {**told, "idle_w": idle_w, "reason": decode.reason or prefill.reason}


def read_bandwidth(backend: str, threads: int | None) -> float | None:
    """Bytes a second that the backend's threads reach when they only read; None of a backend that cannot say."""
    measure = getattr(import_module(f"quamba_edge.backends.{backend}"), "read_bandwidth", None)
    return float(measure(threads)) if measure is not None and threads is not None else None


def result(
    engine: Engine,
    runs: Sequence[Repeat],
    prompts: tuple[int, int],
    peak: int,
    bandwidth: float | None,
    seed: int,
    joules: dict[str, Any],
    conditions: Conditions,
) -> BenchResult:
    """What the repeats say."""
    bundle, gen_len, (batch, prompt_len) = engine.bundle, len(runs[0].tokens), prompts
    each = {
        "ttft_ms": [1000 * r.first for r in runs],
        "tpot_ms": [1000 * sum(r.tokens) / gen_len for r in runs],
        "ttlt_ms": [1000 * (r.first + sum(r.tokens)) for r in runs],
    }
    first = summarize(each["ttft_ms"])
    decode_tps = batch * gen_len / summarize([sum(r.tokens) for r in runs]).median
    moved = total(engine.program(batch, 1, "last"), bundle.manifest, engine.state_dtype).memory // batch
    spent = [joules[part]["energy"]["joules"] for part in ("prefill", "decode")]
    return BenchResult(
        ttft_ms=first,
        tpot_ms=summarize([1000 * t for r in runs for t in r.tokens]),
        ttlt_ms=summarize(each["ttlt_ms"]),
        prefill_tps=1000 * batch * prompt_len / first.median,
        decode_tps=decode_tps,
        repeats_ms=each,
        weights_bytes=sum(place.nbytes for name, place in bundle.places.items() if name != "tokenizer.json"),
        state_bytes=state_bytes(engine.specs, 1, engine.state_dtype),
        arena_bytes=sum(arena_sizes(engine.program(batch, n, "last") for n in CHUNKS).values()),
        peak_rss_bytes=peak,
        bytes_per_token=moved,
        gbps=moved * decode_tps / 1e9,
        roofline_pct=100 * moved * decode_tps / bandwidth if bandwidth else None,
        read_bandwidth=bandwidth,
        roofline=ROOFLINE if bandwidth else f"the {engine.backend.name} backend has no measure of read bandwidth",
        energy_j=sum(spent) / len(runs) if None not in spent else None,
        energy=joules,
        power_mode=conditions.power_mode,
        backend=engine.backend.name,
        threads=getattr(engine.backend, "threads", None),
        instruction_set=getattr(engine.backend, "instruction_set", None),
        bundle=str(bundle.path),
        digest=bundle.digest,
        recipe=str(bundle.manifest.recipe.get("name", "custom")),
        batch=batch,
        prompt_len=prompt_len,
        gen_len=gen_len,
        repeats=len(runs),
        seed=seed,
        state_dtype=engine.state_dtype,
        conditions=conditions,
        versions={"python": platform.python_version(), "numpy": np.__version__, "system": platform.platform()},
        version=__version__,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
