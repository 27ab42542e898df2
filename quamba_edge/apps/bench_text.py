"""What `bench` found, as text for people, a markdown table, CSV, or JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from quamba_edge.apps.bench_record import BenchResult
from quamba_edge.profile.stats import Stats
from quamba_edge.telemetry.conditions import Conditions

FORMATS = ("text", "markdown", "csv", "json", "jsonl")
COLUMNS = (  # heading, field, digits
    ("batch", "batch", 0),
    ("prompt", "prompt_len", 0),
    ("TTFT ms", "ttft_ms.median", 2),
    ("TPOT ms", "tpot_ms.median", 3),
    ("p95", "tpot_ms.p95", 3),
    ("TTLT ms", "ttlt_ms.median", 1),
    ("prefill t/s", "prefill_tps", 1),
    ("decode t/s", "decode_tps", 1),
    ("GB/s", "gbps", 1),
    ("% of read", "roofline_pct", 0),
    ("peak MB", "peak_rss_bytes", -6),
    ("J/token", "energy.decode.gross_j", 3),
)


def written(results: Sequence[BenchResult], form: str, plain: Any) -> str:
    """The records in one of FORMATS; `plain` makes JSON values of what has none, such as infinity."""
    if form == "markdown":
        return markdown(results)
    if form == "csv":
        return table_csv(results)
    if form == "jsonl":
        return "\n".join(json.dumps(plain(r.to_json())) for r in results)
    if form == "json":
        return json.dumps(plain(as_json(results)), indent=1)
    return "\n\n".join(summary(r) for r in results)


def as_json(results: Sequence[BenchResult]) -> dict[str, Any]:
    """One record, or {"records": several}."""
    return results[0].to_json() if len(results) == 1 else {"records": [r.to_json() for r in results]}


def flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, keys joined by dots; lists as JSON text."""
    out: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = json.dumps(value) if isinstance(value, (list, tuple)) else value
    return out


def table_csv(results: Sequence[BenchResult]) -> str:
    """A header line and a line for each record, every field."""
    rows = [flat(r.to_json()) for r in results]
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")


def markdown(results: Sequence[BenchResult]) -> str:
    """A table, and under it what all of its rows have in common."""
    lines = [f"| {' | '.join(c[0] for c in COLUMNS)} |", f"| {' | '.join('---' for _ in COLUMNS)} |"]
    for r in results:
        row = flat(r.to_json())
        lines.append(f"| {' | '.join(_cell(row.get(field), digits) for _, field, digits in COLUMNS)} |")
    return "\n".join(
        [*lines, "", f"{_where(results[0])}, {results[0].repeats} repeats, {results[0].date}.", *_under(results[0])]
    )


def _cell(value: Any, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value * 10.0**digits:.1f}" if digits < 0 else f"{value:.{digits}f}"


def summary(r: BenchResult) -> str:
    """The numbers that people compare."""
    share = (
        f", {r.roofline_pct:.0f} % of the {r.read_bandwidth / 1e9:.1f} that this machine reads"
        if r.read_bandwidth
        else ""
    )
    mega = [f"{b / 1e6:.1f}" for b in (r.weights_bytes, r.state_bytes, r.arena_bytes, r.peak_rss_bytes)]
    batch = f"  batch {r.batch}" if r.batch > 1 else ""
    return "\n".join(
        [
            f"{_where(r)}{batch}",
            f"prefill {r.prefill_tps:9.1f} tokens/s  first of {r.prompt_len} after {_spread(r.ttft_ms)}",
            f"decode  {r.decode_tps:9.1f} tokens/s  a token in {_spread(r.tpot_ms)}; all {r.gen_len} after {_spread(r.ttlt_ms)}",
            f"memory  {r.bytes_per_token / 1e6:9.1f} MB a token  {r.gbps:.1f} GB/s{share}",
            f"MB: weights {mega[0]}, state {mega[1]}, activations {mega[2]}, peak resident {mega[3]}",
            *_under(r),
        ]
    )


def _where(r: BenchResult) -> str:
    runs_on = ", ".join(str(w) for w in (r.instruction_set, f"{r.threads} threads" if r.threads else None) if w)
    return f"{r.bundle}  {r.backend} backend{f' ({runs_on})' if runs_on else ''}, state {r.state_dtype}"


def _under(r: BenchResult) -> list[str]:
    """Energy, and what the measurement ran under."""
    told = r.energy["reason"] or f"prefill {r.energy['prefill']['text']}; decode {r.energy['decode']['text']}"
    return [f"energy: {told}", conditions(r.conditions)]


def conditions(c: Conditions) -> str:
    """One line: `15W  gpu 612 MHz  48->49 C  not throttled`."""
    words = [c.device or "unknown machine", *([c.power_mode] if c.power_mode else [])]
    words += [f"{name} {mhz:.0f} MHz" for name, mhz in (("cpu", c.cpu_mhz), ("gpu", c.gpu_mhz)) if mhz]
    if c.temps_before_c and c.temps_after_c:
        words.append(f"{max(c.temps_before_c.values()):.0f}->{max(c.temps_after_c.values()):.0f} C")
    words += [f"{name} +{n}" for name, n in c.over_current_events.items() if n]
    if c.others_pct is not None and c.others_pct >= 3:
        words.append(f"other programs took {c.others_pct:.0f} % of the cores")
    if c.throttled is not None:
        words.append(f"THROTTLED ({c.throttled_why}): worth nothing" if c.throttled else "not throttled")
    return "  ".join(words)


def _spread(s: Stats) -> str:
    sure = f", median {s.ci95[0]:.2f} to {s.ci95[1]:.2f}" if s.ci95 else ""
    return f"{s.median:.2f} ms (p95 {s.p95:.2f}{sure}, n {s.n})"
