"""Joules from samples: the trapezoid rule over instantaneous power, or the hardware's own counter where it has one.

What is too thin is refused, with the reason: a joule per token from three samples is a guess.  Rails are never added: `power_w` is
the one that holds all others.  Gross is what was drawn; net is gross less what the idle machine, model loaded, would have drawn.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quamba_edge.telemetry.sample import Sample

MIN_SAMPLES = 10  # within the windows: fewer, and one sample decides more than a tenth of the result
MAX_GAP_S = 0.5  # longer, and a burst of work can hide between two samples
MIN_IDLE_S = 10.0  # the idle draw moves by seconds: clocks settle, a desktop redraws


@dataclass(frozen=True)
class Energy:
    """Energy in one or several windows of time.  `joules` is None when it was refused; `reason` then says why.

    samples counts those inside the windows, longest_gap_s is between neighbours that bear on them.
    """

    joules: float | None
    seconds: float
    mean_w: float | None
    power_of: str | None
    samples: int
    longest_gap_s: float | None
    reason: str | None = None


@dataclass(frozen=True)
class PerToken:
    """Energy of some tokens, in joules for each.  The net value needs `idle_w`; `reason` as in Energy."""

    tokens: int
    energy: Energy
    idle_w: float | None
    gross_j: float | None
    net_j: float | None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def over(
    samples: Sequence[Sample],
    windows: Sequence[tuple[int, int]],
    *,
    min_samples: int = MIN_SAMPLES,
    max_gap_s: float = MAX_GAP_S,
) -> Energy:
    """Energy of all windows together, each (begin, end) of time.monotonic_ns; power at their ends is interpolated.

    Several windows are the repeats of one piece of work.  Each must lie between two samples.
    """
    seconds = sum(end - begin for begin, end in windows) / 1e9
    refusal = Energy(None, seconds, None, None, 0, None)
    if not windows or any(end <= begin for begin, end in windows):
        return _because(refusal, "the windows of time are empty")
    counted = all(s.energy_j is not None for s in samples)
    known = [s for s in samples if (s.energy_j if counted else s.power_w) is not None]
    if not known:
        return _because(refusal, "this machine does not tell its power, or not to you: see `quamba-edge doctor`")
    of = {s.power_of for s in known}
    if len(of) > 1:
        return _because(refusal, f"samples measure different things ({', '.join(sorted(map(str, of)))})")
    times = [s.t_ns for s in known]
    values = [float(v) for s in known if (v := s.energy_j if counted else s.power_w) is not None]
    joules, inside, gap = 0.0, 0, 0.0
    for begin, end in windows:
        if begin < times[0] or end > times[-1]:
            return _because(refusal, "sampling did not last from before the work until after it")
        inside += bisect_right(times, end) - bisect_left(times, begin)
        first, last = bisect_right(times, begin) - 1, bisect_left(times, end)
        gap = max(gap, max((b - a) / 1e9 for a, b in zip(times[first:last], times[first + 1 : last + 1])))
        if counted:
            joules += _at(times, values, end) - _at(times, values, begin)
        else:
            joules += _trapezoid(times, values, begin, end)
    found = Energy(joules, seconds, joules / seconds, known[0].power_of, inside, gap)
    interval_s = (known[0].power_interval_ms or 0) / 1000
    if inside < min_samples:
        return _because(
            found, f"only {inside} samples in {seconds:.2f} s, at least {min_samples} are needed: a longer run"
        )
    if gap > max_gap_s:
        return _because(
            found, f"no sample for {gap:.2f} s, at most {max_gap_s:g} s is allowed: an idle machine, or fewer threads"
        )
    if interval_s > max_gap_s and not counted:
        return _because(
            found, f"the sensor has a new value every {interval_s:g} s only, at most {max_gap_s:g} s is allowed"
        )
    return found


def idle_watts(samples: Sequence[Sample]) -> Energy:
    """Draw of the machine at rest, from samples of at least 10 s in which nothing ran; `mean_w` is it, or refused."""
    known = [s for s in samples if s.power_w is not None or s.energy_j is not None]
    lasted = (known[-1].t_ns - known[0].t_ns) / 1e9 if known else 0.0
    if lasted < MIN_IDLE_S:
        reason = f"{lasted:.1f} s at rest, at least {MIN_IDLE_S:g} s are needed"
        return Energy(None, lasted, None, None, len(known), None, reason)
    return over(known, [(known[0].t_ns, known[-1].t_ns)])


def per_token(
    samples: Sequence[Sample], windows: Sequence[tuple[int, int]], tokens: int, idle_w: float | None = None
) -> PerToken:
    """Joules for each of `tokens`, made or read in the windows: one call for prefill, one for decode."""
    energy = over(samples, windows)
    if energy.joules is None or tokens < 1:
        return PerToken(tokens, energy, idle_w, None, None, energy.reason or "no tokens")
    net = (energy.joules - idle_w * energy.seconds) / tokens if idle_w is not None else None
    return PerToken(tokens, energy, idle_w, energy.joules / tokens, net)


def text(result: PerToken) -> str:
    """One line: the figures, or why there are none."""
    if result.gross_j is None:
        return f"energy not told: {result.reason}"
    net = f", {result.net_j:.3f} above idle" if result.net_j is not None else ""
    energy = result.energy
    return f"{result.gross_j:.3f} J/token{net} ({energy.mean_w:.2f} W of {energy.power_of}, {energy.samples} samples)"


def _because(found: Energy, reason: str) -> Energy:
    """The same without the figures: what is refused cannot be printed by mistake."""
    return Energy(None, found.seconds, None, found.power_of, found.samples, found.longest_gap_s, reason)


def _trapezoid(times: Sequence[int], watts: Sequence[float], begin: int, end: int) -> float:
    inner = range(bisect_right(times, begin), bisect_left(times, end))
    points = [(begin, _at(times, watts, begin)), *((times[i], watts[i]) for i in inner), (end, _at(times, watts, end))]
    return sum((p + q) / 2 * (b - a) / 1e9 for (a, p), (b, q) in zip(points, points[1:]))


def _at(times: Sequence[int], values: Sequence[float], t: int) -> float:
    """The value at a moment that lies within `times`."""
    i = bisect_left(times, t)
    if times[i] == t:
        return values[i]
    share = (t - times[i - 1]) / (times[i] - times[i - 1])
    return values[i - 1] + share * (values[i] - values[i - 1])
