"""What `bench` reports of one measurement: an interface that other programs rely on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from quamba_edge.profile.stats import Stats
from quamba_edge.telemetry.conditions import Conditions


@dataclass(frozen=True)
class BenchResult:
    """Milliseconds, bytes, tokens a second, joules; null is what this machine or backend does not tell.

    ttft_ms         a repeat's prompt and the choice of the first token
    tpot_ms         every decoded token of all repeats by itself: feeding it, its logits, and the choice of the next
    ttlt_ms         a repeat's prompt and all gen_len decoded tokens
    prefill_tps     batch * prompt_len over the median ttft_ms
    decode_tps      batch * gen_len over the median time that a repeat decodes
    repeats_ms      of each repeat: its ttft_ms, mean tpot_ms and ttlt_ms, which `bench compare` sets against another run's
    weights_bytes   everything in the bundle but header and tokenizer
    state_bytes     of one sequence
    arena_bytes     activations of all chunk sizes together
    peak_rss_bytes  of this process since this measurement began, mapped weights included
    bytes_per_token moved by a decode step, for each of its `batch` tokens
    gbps            bytes_per_token times decode_tps, 1e9 bytes a second
    roofline_pct    of read_bandwidth, which so many threads reach when they only read; above 100 where weights stay in a cache
    energy_j        a repeat's prompt and answer, everything drawn; energy has prefill and decode apart, or why there is none
    """

    ttft_ms: Stats
    tpot_ms: Stats
    ttlt_ms: Stats
    prefill_tps: float
    decode_tps: float
    repeats_ms: dict[str, list[float]]
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
    energy: dict[str, Any]
    power_mode: str | None
    backend: str
    threads: int | None
    instruction_set: str | None
    bundle: str
    digest: str
    recipe: str
    batch: int
    prompt_len: int
    gen_len: int
    repeats: int
    seed: int
    state_dtype: str
    conditions: Conditions
    versions: dict[str, str]
    version: str
    date: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
