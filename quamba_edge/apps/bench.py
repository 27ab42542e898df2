"""`quamba-edge bench`: how fast a bundle reads a prompt and writes an answer here, beside what this machine's memory allows.

One repeat is what a visitor feels: an empty state, a prompt of random tokens, then the likeliest token fed back `gen_len` times,
through the session that every face uses.  Decoding reads all weights for each token, so its ceiling is the bandwidth that the
same number of threads reaches when it only reads; both come from the same run, because these machines differ from hour to hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from quamba_edge import __version__
from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import BadUsage
from quamba_edge.profile.costs import total
from quamba_edge.profile.memory import peak_rss
from quamba_edge.profile.stats import Stats, summarize
from quamba_edge.runtime.plan import arena_sizes
from quamba_edge.runtime.sampling import Sampler, Sampling
from quamba_edge.runtime.session import CHUNKS, Engine, Session
from quamba_edge.runtime.state import state_bytes

WARM_TOKENS = 16  # decoded before measuring, after one whole prompt: pages mapped, plans recorded, clocks up
ROOFLINE = "bytes_per_token at read_bandwidth; a decode step reads every weight once, of the embedding one row, and reads and writes the state"


@dataclass(frozen=True)
class BenchResult:
    """Milliseconds, bytes, tokens a second; null is what this machine or backend does not tell.

    ttft_ms         a repeat's prompt and the choice of the first token
    tpot_ms         every decoded token of all repeats by itself: feeding it, its logits, and the choice of the next
    ttlt_ms         a repeat's prompt and all gen_len decoded tokens
    prefill_tps     prompt_len over the median ttft_ms
    decode_tps      gen_len over the median time that a repeat decodes
    weights_bytes   everything in the bundle but header and tokenizer
    state_bytes     of one sequence
    arena_bytes     activations of all chunk sizes together
    peak_rss_bytes  of this process, mapped weights included
    gbps            bytes_per_token times decode_tps, 1e9 bytes a second
    roofline_pct    of read_bandwidth, which so many threads reach when they only read; more than 100 where weights stay in a cache
    """

    ttft_ms: Stats
    tpot_ms: Stats
    ttlt_ms: Stats
    prefill_tps: float
    decode_tps: float
    weights_bytes: int
    state_bytes: int
    arena_bytes: int
    peak_rss_bytes: int
    bytes_per_token: int
    gbps: float
    roofline_pct: float | None
    read_bandwidth: float | None
    roofline: str
    energy_j: float | None
    power_mode: str | None
    backend: str
    threads: int | None
    instruction_set: str | None
    bundle: str
    digest: str
    prompt_len: int
    gen_len: int
    repeats: int
    seed: int
    state_dtype: str
    version: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Repeat:
    """Seconds to the first token, and of each decoded token."""

    first: float
    tokens: tuple[float, ...]


def bench(
    path: Path,
    *,
    prompt_len: int = 512,
    gen_len: int = 128,
    repeats: int = 5,
    backend: str = "auto",
    state_dtype: str = "f16",
    threads: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> BenchResult:
    """Measure the bundle at `path`.  Errors: BadUsage for lengths under 1, BadBundle and its kinds, Missing for the backend."""
    for name, value in (("--prompt-len", prompt_len), ("--gen-len", gen_len), ("--repeats", repeats)):
        if value < 1:
            raise BadUsage(f"{name} is {value}: expected 1 or more")
    with Bundle.open(path) as bundle:
        engine = Engine(bundle, backend, state_dtype, threads)
        prompt = np.random.default_rng(seed).integers(0, engine.vocab_size, prompt_len, dtype=np.int32)
        session, runs = Session(engine), []
        run(session, prompt, min(gen_len, WARM_TOKENS))
        for done in range(repeats):
            progress(done, repeats, "repeats")
            runs.append(run(session, prompt, gen_len))
        progress(repeats, repeats, "read bandwidth")
        peak = peak_rss()  # before the bandwidth is measured, which takes memory of its own
        used = getattr(engine.backend, "threads", None)
        return result(engine, runs, prompt_len, peak, read_bandwidth(engine.backend.name, used), seed)


def run(session: Session, prompt: np.ndarray, gen_len: int) -> Repeat:
    """One repeat: the prompt from an empty state, then gen_len tokens, each the likeliest so far."""
    sampler, clock = Sampler(Sampling()), time.perf_counter
    session.reset()
    marks = [clock()]
    token = sampler.pick(session.prefill(prompt))
    marks.append(clock())
    for _ in range(gen_len):
        token = sampler.pick(session.decode(token))
        marks.append(clock())
    spans = np.diff(marks).tolist()
    return Repeat(spans[0], tuple(spans[1:]))


def read_bandwidth(backend: str, threads: int | None) -> float | None:
    """Bytes a second that the backend's threads reach when they only read; None of a backend that cannot say."""
    measure = getattr(import_module(f"quamba_edge.backends.{backend}"), "read_bandwidth", None)
    return float(measure(threads)) if measure is not None and threads is not None else None


def result(
    engine: Engine, runs: list[Repeat], prompt_len: int, peak: int, bandwidth: float | None, seed: int
) -> BenchResult:
    """What the repeats say."""
    bundle, gen_len = engine.bundle, len(runs[0].tokens)
    first, last = summarize([1000 * r.first for r in runs]), summarize([1000 * (r.first + sum(r.tokens)) for r in runs])
    decode_tps = gen_len / summarize([sum(r.tokens) for r in runs]).median
    moved = total(engine.program(1, 1, "last"), bundle.manifest, engine.state_dtype).memory
    return BenchResult(
        ttft_ms=first,
        tpot_ms=summarize([1000 * t for r in runs for t in r.tokens]),
        ttlt_ms=last,
        prefill_tps=1000 * prompt_len / first.median,
        decode_tps=decode_tps,
        weights_bytes=sum(place.nbytes for name, place in bundle.places.items() if name != "tokenizer.json"),
        state_bytes=state_bytes(engine.specs, 1, engine.state_dtype),
        arena_bytes=sum(arena_sizes(engine.program(1, n, "last") for n in CHUNKS).values()),
        peak_rss_bytes=peak,
        bytes_per_token=moved,
        gbps=moved * decode_tps / 1e9,
        roofline_pct=100 * moved * decode_tps / bandwidth if bandwidth else None,
        read_bandwidth=bandwidth,
        roofline=ROOFLINE if bandwidth else f"the {engine.backend.name} backend has no measure of read bandwidth",
        energy_j=None,
        power_mode=None,
        backend=engine.backend.name,
        threads=getattr(engine.backend, "threads", None),
        instruction_set=getattr(engine.backend, "instruction_set", None),
        bundle=str(bundle.path),
        digest=bundle.digest,
        prompt_len=prompt_len,
        gen_len=gen_len,
        repeats=len(runs),
        seed=seed,
        state_dtype=engine.state_dtype,
        version=__version__,
    )


def summary(r: BenchResult) -> str:
    """The numbers that people compare."""
    runs_on = ", ".join(str(w) for w in (r.instruction_set, f"{r.threads} threads" if r.threads else None) if w)
    share = (
        f", {r.roofline_pct:.0f} % of the {r.read_bandwidth / 1e9:.1f} that this machine reads"
        if r.read_bandwidth
        else ""
    )
    mega = [f"{b / 1e6:.1f}" for b in (r.weights_bytes, r.state_bytes, r.arena_bytes, r.peak_rss_bytes)]
    return "\n".join(
        [
            f"{r.bundle}  {r.backend} backend{f' ({runs_on})' if runs_on else ''}, state {r.state_dtype}",
            f"prefill {r.prefill_tps:9.1f} tokens/s  first of {r.prompt_len} after {_spread(r.ttft_ms)}",
            f"decode  {r.decode_tps:9.1f} tokens/s  a token in {_spread(r.tpot_ms)}; all {r.gen_len} after {_spread(r.ttlt_ms)}",
            f"memory  {r.bytes_per_token / 1e6:9.1f} MB a token  {r.gbps:.1f} GB/s{share}",
            f"MB: weights {mega[0]}, state {mega[1]}, activations {mega[2]}, peak resident {mega[3]}",
        ]
    )


def _spread(s: Stats) -> str:
    return f"{s.median:.2f} ms (p95 {s.p95:.2f}, n {s.n})"
