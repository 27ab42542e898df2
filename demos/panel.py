"""The live panel of chat.py: numbers and small plots of the last minutes, as one piece of HTML that needs nothing from elsewhere.

What this machine does not tell is "not available", never zero.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from quamba_edge import telemetry
from quamba_edge.profile.memory import rss
from quamba_edge.serve.engine import Service
from quamba_edge.telemetry import energy
from quamba_edge.telemetry.sample import Recorder

KEEP_S = 300
WIDTH, HEIGHT = 300, 56  # of a plot, in its own units

CSS = """
.tiles {display:grid; grid-template-columns:repeat(4,1fr); gap:.45rem}
@media (max-width: 1000px) {.tiles {grid-template-columns:repeat(2,1fr)}}
.tile {min-width:0; border:1px solid var(--border-color-primary); border-radius:10px; padding:.4rem .55rem; background:var(--background-fill-primary)}
.tile .name {font-size:.72rem; color:var(--body-text-color-subdued)}
.tile .value {font-size:1.2rem; font-weight:600; font-variant-numeric:tabular-nums; white-space:nowrap}
.tile .value small {font-size:.75rem; font-weight:400; color:var(--body-text-color-subdued)}
.tile.none .value {font-size:.8rem; font-weight:400; color:var(--body-text-color-subdued); line-height:1.75rem}
.plot {margin-top:.7rem}
.plot .name {display:flex; gap:.6rem; justify-content:space-between; font-size:.72rem; color:var(--body-text-color-subdued)}
.plot svg {display:block; width:100%; height:56px}
.plot line {stroke:var(--border-color-primary)}
.plot path.line {fill:none; stroke:var(--color-accent); stroke-width:1.6; vector-effect:non-scaling-stroke}
.plot path.area {fill:var(--color-accent); opacity:.14}
"""


@dataclass(frozen=True)
class Point:
    """One look: t on the monotonic clock in seconds; None for what is not known."""

    t: float
    tokens_per_s: float | None
    watts: float | None
    temp_c: float | None
    memory: float | None


@dataclass(frozen=True)
class Answer:
    """The latest answer; times of time.monotonic_ns."""

    begin_ns: int
    end_ns: int
    tokens: int
    ttft_ms: float | None
    tokens_per_s: float | None


class Panel:
    """Looks once a second, in a thread of its own; the sensors are read five times a second, so that joules can be told."""

    def __init__(self, service: Callable[[], Service | None], source: telemetry.Source | None = None) -> None:
        self._service = service
        self._recorder = Recorder(source or telemetry.best(), hz=5, keep_s=KEEP_S).start()
        self.points: deque[Point] = deque(maxlen=KEEP_S)
        self.answer: Answer | None = None
        self._joules: tuple[Answer, float | None] | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._look, name="panel", daemon=True).start()

    def close(self) -> None:
        """Look no more, and let go of the sensors."""
        self._closed.set()
        self._recorder.stop()

    def _look(self) -> None:
        before, then, seen = 0.0, time.monotonic(), None
        while not self._closed.wait(1):
            service, now = self._service(), time.monotonic()
            tokens = service.metrics.generated_tokens.total if service is not None else 0.0
            speed = (tokens - before) / (now - then) if service is not None and service is seen else None
            before, then, seen = tokens, now, service
            sample = self._recorder.latest
            temp = max(sample.temps_c.values()) if sample is not None and sample.temps_c else None
            watts = sample.power_w if sample is not None else None
            self.points.append(Point(now, speed, watts, temp, rss()))

    def joules_per_token(self) -> float | None:
        """Of the latest answer; None where the machine tells too little."""
        answer = self.answer
        if answer is None or answer.tokens < 1:
            return None
        if self._joules is None or self._joules[0] is not answer:
            found = energy.per_token(self._recorder.samples(), [(answer.begin_ns, answer.end_ns)], answer.tokens)
            if found.gross_j is None and time.monotonic_ns() - answer.end_ns < 1e9:
                return None  # the sample after its end has still to come
            self._joules = answer, found.gross_j
        return self._joules[1]

    def html(self) -> str:
        """The panel as it is now."""
        answer, sample = self.answer, self._recorder.latest
        last = self.points[-1] if self.points else None
        free = sample.ram_available_bytes if sample is not None else None
        tiles = [
            _tile("Tokens/s", answer and answer.tokens_per_s, "", ".1f", "no answer yet"),
            _tile("First token", answer and answer.ttft_ms, "ms", ".0f", "no answer yet"),
            _tile("Power", last and last.watts, "W", ".1f"),
            _tile("Energy/token", self.joules_per_token(), "J", ".3f"),
            _tile("Memory used", last and last.memory and last.memory / 1e6, "MB", ".0f"),
            _tile("Memory free", free and free / 1e9, "GB", ".1f"),
            _tile("Temperature", last and last.temp_c, "°C", ".0f"),
            _tile("Power mode", sample.power_mode if sample is not None else None, "", ""),
        ]
        plots = [
            _plot("Tokens a second", [(p.t, p.tokens_per_s) for p in self.points], ".0f"),
            _plot("Watts", [(p.t, p.watts) for p in self.points], ".1f"),
            _plot("Temperature of the hottest sensor, °C", [(p.t, p.temp_c) for p in self.points], ".0f"),
            _plot("Memory, MB", [(p.t, p.memory and p.memory / 1e6) for p in self.points], ".0f"),
        ]
        return f'<div class="tiles">{"".join(tiles)}</div>{"".join(plots)}'


def _tile(name: str, value: float | str | None, unit: str, form: str, absent: str = "not available") -> str:
    if value is None:
        return f'<div class="tile none"><div class="name">{name}</div><div class="value">{absent}</div></div>'
    shown = escape(value) if isinstance(value, str) else format(value, form)
    return (
        f'<div class="tile"><div class="name">{name}</div><div class="value">{shown} <small>{unit}</small></div></div>'
    )


def _plot(name: str, points: Sequence[tuple[float, float | None]], form: str) -> str:
    """A line over the last minutes, the newest at the right; nothing where there is nothing to draw."""
    known = [(t, v) for t, v in points if v is not None]
    if len(known) < 2:
        return ""
    end, low, high = known[-1][0], min(0.0, *(v for _, v in known)), max(v for _, v in known)
    spread = (high - low) or 1.0
    place = [(WIDTH * (1 - (end - t) / KEEP_S), HEIGHT - 3 - (HEIGHT - 6) * (v - low) / spread) for t, v in known]
    line = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(place))
    area = f"{line} L{place[-1][0]:.1f} {HEIGHT} L{place[0][0]:.1f} {HEIGHT} Z"
    now, top = format(known[-1][1], form), format(high, form)
    return (
        f'<div class="plot"><div class="name"><span>{name}</span><span>now {now}, highest {top}</span></div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{name}: now {now}">'
        f'<line x1="0" x2="{WIDTH}" y1="{HEIGHT - 1}" y2="{HEIGHT - 1}"/>'
        f'<path class="area" d="{area}"/><path class="line" d="{line}"/></svg></div>'
    )
