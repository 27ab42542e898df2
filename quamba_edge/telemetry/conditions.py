"""Under what conditions something was measured: power mode, clocks, heat, over-current, and whether the machine held itself back.

with Watched(telemetry.best()) as watched:
    ...
watched.conditions()
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from quamba_edge import devices
from quamba_edge.telemetry.files import Tree
from quamba_edge.telemetry.sample import Recorder, Sample, Source

KEEP_S = 3600.0
Counters = tuple[int | None, float | None, float, float]


@dataclass(frozen=True)
class Conditions:
    """From the first sample to the last; what the machine does not tell is None, or not in the table.

    cpu_mhz, gpu_mhz      median over the samples (of the fastest cluster), emc_max_mhz the mode's cap
    over_current_events   counted meanwhile, by name; oc3 grows by design in MAXN_SUPER
    throttle_events       x86: how often a core was slowed for its heat
    others_pct            share of all `cpus` cores that other programs took
    throttled             None where nothing here could tell; `throttled_why` names what told
    """

    device: str | None
    power_mode: str | None
    cpu_mhz: float | None
    gpu_mhz: float | None
    emc_max_mhz: float | None
    temps_before_c: dict[str, float]
    temps_after_c: dict[str, float]
    hottest_c: float | None
    over_current_events: dict[str, int]
    throttle_events: int | None
    others_pct: float | None
    cpus: int | None
    throttled: bool | None
    throttled_why: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Watched:
    """In a `with` block it records `source`; `samples()` and `conditions()` tell afterwards.  The source stays open."""

    def __init__(self, source: Source, root: Path = Path("/")):
        self._tree = Tree(root)
        self._recorder = Recorder(source, keep_s=KEEP_S)
        self._before: Counters = (None, None, 0.0, 0.0)
        self._after: Counters = self._before

    def __enter__(self) -> Watched:
        self._before = self._counters()
        self._recorder.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._recorder.stop()
        self._after = self._counters()

    def samples(self) -> list[Sample]:
        return self._recorder.samples()

    def conditions(self) -> Conditions:
        """What the block ran under."""
        throttles = None
        if self._before[0] is not None and self._after[0] is not None:
            throttles = self._after[0] - self._before[0]
        return conditions(self.samples(), self._tree, throttles, self._others())

    def _counters(self) -> Counters:
        """(heat slow-downs so far, busy seconds of all cores, own seconds, now)."""
        places = self._tree.glob("/sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")
        counts = [n for p in places if (n := self._tree.integer(p)) is not None]
        times = os.times()
        return sum(counts) if counts else None, busy_seconds(self._tree), times.user + times.system, time.monotonic()

    def _others(self) -> float | None:
        (_, busy, own, began), (_, then, used, ended) = self._before, self._after
        if busy is None or then is None or ended <= began:
            return None
        share = (then - busy - (used - own)) / ((ended - began) * (os.cpu_count() or 1))
        return 100 * min(1.0, max(0.0, share))


def busy_seconds(tree: Tree) -> float | None:
    """Seconds that all cores have worked since the machine started, other guests of its host included."""
    words = (tree.text("/proc/stat") or "").split("\n", 1)[0].split()[1:9]
    if len(words) < 8 or not all(w.isdecimal() for w in words):
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, words)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def conditions(
    samples: Sequence[Sample], tree: Tree, throttle_events: int | None = None, others_pct: float | None = None
) -> Conditions:
    """What samples say, oldest first; at least one."""
    first, last = samples[0], samples[-1]
    board = devices.find(tree.text("/proc/device-tree/compatible") or "")
    heat = [t for s in samples for t in s.temps_c.values()]
    events = {k: n - first.over_current_events.get(k, n) for k, n in last.over_current_events.items()}
    modes = {s.power_mode for s in samples}
    limit = board.throttle_c if board else None
    whys = [f"{max(heat):.1f} C, the limit is {limit:g}"] if limit is not None and heat and max(heat) >= limit else []
    by_design = "oc3" if (last.power_mode or "").startswith("MAXN") else ""
    whys += [f"{n} over-current events {k}" for k, n in events.items() if n > 0 and k != by_design]
    whys += [f"cores were slowed for heat {throttle_events} times"] if throttle_events else []
    whys += [f"the power mode changed: {', '.join(sorted(map(str, modes)))}"] if len(modes) > 1 else []
    can_tell = bool(events) or throttle_events is not None or (limit is not None and bool(heat))
    return Conditions(
        device=_device(board, tree),
        power_mode=last.power_mode,
        cpu_mhz=_median([max(s.cpu_mhz) for s in samples if s.cpu_mhz]),
        gpu_mhz=_median([s.gpu_mhz for s in samples if s.gpu_mhz is not None]),
        emc_max_mhz=last.emc_max_mhz,
        temps_before_c=dict(first.temps_c),
        temps_after_c=dict(last.temps_c),
        hottest_c=max(heat, default=None),
        over_current_events=events,
        throttle_events=throttle_events,
        others_pct=others_pct,
        cpus=os.cpu_count(),
        throttled=bool(whys) if can_tell or whys else None,
        throttled_why="; ".join(whys) or None,
    )


def _device(board: devices.Board | None, tree: Tree) -> str | None:
    """The board by our name, else what the machine's maker or its processor calls itself."""
    if board is not None:
        return board.name
    for line in (tree.text("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip() or None
    return tree.text("/proc/device-tree/model")


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None
