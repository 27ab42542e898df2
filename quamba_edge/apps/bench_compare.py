"""`quamba-edge bench compare A.json B.json`: what changed, by how much, and whether that is more than noise.

Repeats of two runs are compared by Welch's t-test on logarithms (profile/stats.py).  That knows how repeats of one run differ, and not
how the machine differs from one run to the next, so a change must besides be larger than a floor: 2 %, or by how much the machine's
own read bandwidth differed, if that is more.  A run that was throttled, or that had to share its cores with other programs, is void:
nothing is concluded from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from quamba_edge.errors import BadUsage
from quamba_edge.profile.stats import LEAST, Change, change

FLOOR = 0.02  # of any figure: below it lie page placement and clocks, which are drawn once for a whole run
DISTURBED = 0.2  # of the cores that a run wanted, for others: W8A8 once seemed to decode faster than W4A8 so
METHOD = "Welch's t-test on logarithms of the repeats, 95 %; and larger than the floor"
TIMED = (("ttft_ms", "time to the first token"), ("tpot_ms", "time for each token"), ("ttlt_ms", "time for all"))
COUNTED = ("weights_bytes", "state_bytes", "arena_bytes", "peak_rss_bytes", "bytes_per_token")
SAME_WORK = ("batch", "prompt_len", "gen_len")
ABOUT = ("digest", "backend", "threads", "instruction_set", "state_dtype", "power_mode", "version", "recipe")


@dataclass(frozen=True)
class Row:
    """One figure of both runs.  verdict: faster, slower, more, less, same, noise, void, or unknown (of too few repeats)."""

    name: str
    a: float
    b: float
    change_pct: float
    low_pct: float | None
    high_pct: float | None
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """`differs` has what is not alike about the two runs besides their speed; void says why nothing may be concluded."""

    a: str
    b: str
    work: dict[str, Any]
    rows: tuple[Row, ...]
    differs: dict[str, tuple[Any, Any]]
    floor_pct: float
    void: tuple[str, ...]
    notes: tuple[str, ...]
    method: str = METHOD


@dataclass(frozen=True)
class Compared:
    comparisons: tuple[Comparison, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(a: Path, b: Path) -> Compared:
    """Compare what `bench --json` printed in two files: records of the same batch, prompt and answer length.

    BadUsage for a file that holds no such record, or where no two did the same work.
    """
    left, right = records(a), records(b)
    of = {tuple(r[k] for k in SAME_WORK): r for r in right}
    pairs = [(r, of[key]) for r in left if (key := tuple(r[k] for k in SAME_WORK)) in of]
    if not pairs:
        told = [" and ".join(sorted({_work(r) for r in side})) for side in (left, right)]
        raise BadUsage(
            f"{a} and {b} did different work ({told[0]}; {told[1]}): run both with the same lengths and batch"
        )
    return Compared(tuple(_compared(x, y, str(a), str(b)) for x, y in pairs))


def records(path: Path) -> list[dict[str, Any]]:
    """The records of a file that holds what --json, or --format json or jsonl, printed; lines that are no JSON are skipped."""
    try:
        text = path.read_text()
    except (OSError, ValueError) as e:
        raise BadUsage(f"{path}: {e}; expected what `bench --json` printed") from None
    found = []
    for part in (text, *text.splitlines()):
        try:
            raw = json.loads(part)
        except ValueError:
            continue
        each = raw.get("records", [raw]) if isinstance(raw, dict) else []
        found += [r for r in each if isinstance(r, dict) and "repeats_ms" in r]
        if found and part is text:
            break
    if not found:
        raise BadUsage(f"{path} holds no record of bench: expected what `quamba-edge bench BUNDLE --json` printed")
    return found


def _work(r: Mapping[str, Any]) -> str:
    return f"batch {r['batch']}, prompt {r['prompt_len']}, answer {r['gen_len']}"


def _compared(x: dict[str, Any], y: dict[str, Any], a: str, b: str) -> Comparison:
    void = [f"{name}: {why}" for name, r in ((a, x), (b, y)) for why in _worthless(r)]
    floor, notes = FLOOR, []
    reads = [float(r.get("read_bandwidth") or 0) for r in (x, y)]
    if all(reads):
        drift = abs(reads[1] / reads[0] - 1)
        if drift > floor:
            floor = drift
            notes.append(
                f"this machine read {reads[0] / 1e9:.1f} GB/s in the first run and {reads[1] / 1e9:.1f} in the second"
            )
    for name, r in ((a, x), (b, y)):
        others = r["conditions"].get("others_pct")
        if others is not None and others >= 3 and not any("other programs" in why for why in _worthless(r)):
            notes.append(f"during {name} other programs took {others:.0f} % of the cores")
    rows = [_timed(name, x, y, floor, bool(void)) for name, _ in TIMED]
    rows += [_counted(name, x[name], y[name]) for name in COUNTED]
    rows += _joules(x, y, bool(void))
    differs = {k: (x.get(k), y.get(k)) for k in ABOUT if x.get(k) != y.get(k)}
    for key in ("device", "gpu_mhz", "emc_max_mhz"):
        pair = x["conditions"].get(key), y["conditions"].get(key)
        if pair[0] != pair[1]:
            differs[key] = pair
    return Comparison(a, b, {k: x[k] for k in SAME_WORK}, tuple(rows), differs, 100 * floor, tuple(void), tuple(notes))


def _worthless(r: Mapping[str, Any]) -> list[str]:
    """Why nothing can be concluded from a run."""
    whys, c = [], r["conditions"]
    if c.get("throttled"):
        whys.append(f"throttled, {c['throttled_why']}: cool it, or take a lower power mode, and measure again")
    cores, others, threads = c.get("cpus"), c.get("others_pct"), r.get("threads")
    if cores and threads and others is not None:
        wanted_too = others / 100 * cores + min(threads, cores) - cores
        if wanted_too / min(threads, cores) >= DISTURBED:
            whys.append(
                f"other programs took {others:.0f} % of {cores} cores, of which it wanted {threads}: end them, and measure again"
            )
    return whys


def _timed(name: str, x: Mapping[str, Any], y: Mapping[str, Any], floor: float, void: bool) -> Row:
    """a and b are geometric means of the repeats, whose ratio is what is tested."""
    one, other = x["repeats_ms"][name], y["repeats_ms"][name]
    a, b, found = geometric_mean(one), geometric_mean(other), change(one, other)
    if found is None:
        return Row(name, a, b, 100 * (b / a - 1), None, None, "void" if void else "unknown")
    verdict = "void" if void else _verdict(found, floor)
    return Row(name, a, b, 100 * found.share, 100 * found.low, 100 * found.high, verdict)


def _verdict(found: Change, floor: float) -> str:
    if not found.certain or abs(found.share) <= floor:
        return "noise"
    return "slower" if found.share > 0 else "faster"


def _counted(name: str, x: float, y: float) -> Row:
    """Bytes are not drawn by chance, but for the peak, which moves by a page or a megabyte."""
    share = y / x - 1 if x else 0.0
    alike = abs(share) <= (FLOOR if name == "peak_rss_bytes" else 0)
    return Row(name, x, y, 100 * share, None, None, "same" if alike else "more" if share > 0 else "less")


def _joules(x: Mapping[str, Any], y: Mapping[str, Any], void: bool) -> list[Row]:
    """One figure a run, so nothing tells it from noise but its size."""
    out = []
    for part in ("prefill", "decode"):
        a, b = (r["energy"].get(part, {}).get("gross_j") for r in (x, y))
        if a and b:
            out.append(Row(f"{part}_j_per_token", a, b, 100 * (b / a - 1), None, None, "void" if void else "unknown"))
    return out


def text(compared: Compared) -> str:
    """A table for each pair of records."""
    out = []
    for c in compared.comparisons:
        lines = [f"{_work(c.work)}: {c.a} -> {c.b}"]
        lines += [f"  {name}: {x} -> {y}" for name, (x, y) in c.differs.items()]
        lines.append(f"{'':22s} {'A':>11s} {'B':>11s} {'change':>9s}  {'95 % interval':>20s}")
        for r in c.rows:
            unit = 1e6 if r.name.endswith("bytes") or r.name == "bytes_per_token" else 1
            name = (
                r.name.replace("_bytes", " MB")
                .replace("bytes_per_token", "MB a token")
                .replace("_ms", " ms")
                .replace("_", " ")
            )
            sure = f"{r.low_pct:+.1f} .. {r.high_pct:+.1f} %" if r.low_pct is not None else ""
            lines.append(
                f"{name:22s} {r.a / unit:11.3f} {r.b / unit:11.3f} {r.change_pct:+8.1f} %  {sure:>20s}  {r.verdict}"
            )
        lines += [f"VOID: {v}" for v in c.void]
        lines += (
            [f"unknown: fewer than {LEAST} repeats, or one figure a run"]
            if any(r.verdict == "unknown" for r in c.rows)
            else []
        )
        out.append("\n".join([*lines, *c.notes, f"more than noise: {c.method} of {c.floor_pct:.1f} %"]))
    return "\n\n".join(out)
