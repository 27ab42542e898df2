"""`quamba-edge bench --plot FILE.png`: latency of every token, power, heat and clocks over the time of a measurement.

Drawn with matplotlib, which a board does not need: pip install 'quamba-edge[plot]'.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quamba_edge.apps.bench import Measured
from quamba_edge.apps.bench_text import conditions
from quamba_edge.errors import BadUsage, Missing

BLUE, AMBER, RED, GREEN = "#2b6cb0", "#d69e2e", "#c53030", "#2f855a"
ENDINGS = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """Refuse, before anything is measured, what could not be drawn: Missing without matplotlib, BadUsage for another ending."""
    if path.suffix not in ENDINGS:
        raise BadUsage(f"--plot {path}: expected a name that ends in {', '.join(ENDINGS)}")
    if not path.absolute().parent.is_dir():
        raise BadUsage(f"--plot {path}: there is no folder {path.absolute().parent}")
    # Looked for and not imported: it would count into the peak memory that is about to be measured.
    if "matplotlib" in sys.modules:
        found = sys.modules["matplotlib"] is not None
    else:
        found = find_spec("matplotlib") is not None
    if not found:
        raise Missing("--plot draws with matplotlib: pip install 'quamba-edge[plot]', or measure with --json only")


def plot(measured: Sequence[Measured], path: Path) -> None:
    """One column for each measurement, one row for each thing that was told; written to `path`."""
    from matplotlib.figure import Figure

    rows = [r for r in (_latency, _power, _heat, _clock) if any(r(None, m, 0.0) for m in measured)]
    heights = [2.4, *[1.0] * (len(rows) - 1)]
    size = (1.5 + 6.5 * len(measured), 1.5 + 1.6 * sum(heights))
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    grid = figure.subplots(
        len(rows), len(measured), sharex="col", squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for column, m in enumerate(measured):
        start = m.runs[0].began_ns
        for axes, draw in zip(grid[:, column], rows, strict=True):
            for r in m.runs:
                axes.axvspan(*(_s(t, start) for t in r.prompt_window), color=AMBER, alpha=0.25, linewidth=0)
            draw(axes, m, start)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            if draw is not _latency:
                axes.set_ylim(bottom=0)
        of = m.result
        work = f"{Path(of.bundle).name}, batch {of.batch}, prompt {of.prompt_len}, answer {of.gen_len}"
        title = "\n".join([work, *textwrap.wrap(conditions(of.conditions), 80)])
        grid[0][column].set_title(title, fontsize=9, loc="left")
        grid[-1][column].set_xlabel("seconds")
    figure.savefig(path)


def _s(t_ns: float, start: float) -> float:
    return (t_ns - start) / 1e9


# Each draws a row, or with no axes only says whether it has anything to draw.


def _latency(axes: Any, m: Measured, start: float) -> bool:
    if axes is None:
        return True
    for r in m.runs:
        at, ends = _s(r.answer_window[0], start), []
        for spent in r.tokens:
            at += spent
            ends.append(at)
        axes.plot(ends, [1000 * t for t in r.tokens], ".", color=BLUE, markersize=3)
    stats = m.result.tpot_ms
    axes.axhline(stats.median, color=BLUE, linewidth=1, label=f"median {stats.median:.2f} ms")
    axes.axhline(stats.p95, color=RED, linewidth=1, linestyle="--", label=f"p95 {stats.p95:.2f} ms")
    axes.fill_between([], [], color=AMBER, alpha=0.25, label=f"prompt, {m.result.ttft_ms.median:.0f} ms")
    most, top = max(1000 * t for r in m.runs for t in r.tokens), max(1.5 * stats.p95, 2 * stats.median)
    beyond = sum(1000 * t > top for r in m.runs for t in r.tokens)
    if beyond:  # one token that waited for another program must not flatten all others
        axes.plot([], [], " ", label=f"{beyond} above, up to {most:.0f} ms")
    axes.set_ylim(0, top)
    axes.set_ylabel("ms a token")
    axes.legend(fontsize=8, loc="upper right")
    return True


def _power(axes: Any, m: Measured, start: float) -> bool:
    known = [s for s in m.samples if s.power_w is not None]
    if axes is not None and known:
        axes.plot([_s(s.t_ns, start) for s in known], [s.power_w for s in known], color=RED, linewidth=1)
        axes.set_ylabel(f"W of {known[0].power_of}")
    return bool(known)


def _heat(axes: Any, m: Measured, start: float) -> bool:
    known = [s for s in m.samples if s.temps_c]
    if axes is not None and known:
        axes.plot(
            [_s(s.t_ns, start) for s in known], [max(s.temps_c.values()) for s in known], color=AMBER, linewidth=1
        )
        axes.set_ylabel("hottest, C")
    return bool(known)


def _clock(axes: Any, m: Measured, start: float) -> bool:
    gpu = [s for s in m.samples if s.gpu_mhz is not None]
    cpu = [s for s in m.samples if s.cpu_mhz]
    if axes is not None and (gpu or cpu):
        if gpu:
            axes.plot([_s(s.t_ns, start) for s in gpu], [s.gpu_mhz for s in gpu], color=GREEN, linewidth=1, label="GPU")
        if cpu:
            axes.plot(
                [_s(s.t_ns, start) for s in cpu], [max(s.cpu_mhz) for s in cpu], color=BLUE, linewidth=1, label="CPU"
            )
        axes.set_ylabel("MHz")
        axes.legend(fontsize=8, loc="lower right")
    return bool(gpu or cpu)
