"""NVIDIA's tegrastats, live or from a log: one line a sample.  Slower than the files (tegra.py), but it is on every Jetson.

10-08-2026 04:38:21 RAM 1343/7620MB (lfb 157x4MB) SWAP 165/3810MB (cached 3MB) CPU [0%@1497,off] EMC_FREQ 15%@204
GR3D_FREQ 0%@[305] cpu@48.562C VDD_IN 5251mW/8535mW

Of a rail's two figures only the first is read: the second is a mean since tegrastats began, which is no use for energy.  EMC and
the GPU's clock are there only when it runs as root.  Its megabytes are MiB; its free memory is not told.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from quamba_edge.devices import TOTAL_RAIL
from quamba_edge.errors import Missing
from quamba_edge.telemetry.sample import Rail, Sample

INTERVAL_MS = 100
MIB = 1 << 20

_DIGITS = "[0-9]{1,9}"
_RAM = re.compile(rf"\bRAM ({_DIGITS})/({_DIGITS})MB\b")
_SWAP = re.compile(rf"\bSWAP ({_DIGITS})/({_DIGITS})MB\b")
_CPU = re.compile(r"\bCPU \[([0-9%@,a-z]{1,2000})\]")
_CORE = re.compile(rf"({_DIGITS})%@({_DIGITS})")
_GPU = re.compile(rf"\bGR3D_FREQ ({_DIGITS})%(?:@\[?({_DIGITS})[0-9,]*\]?)?(?=\s)")  # never last: at the end it was cut
_EMC = re.compile(rf"\bEMC_FREQ ({_DIGITS})%@({_DIGITS})(?=\s)")
_TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z][A-Za-z0-9_]*)@(-?[0-9]{1,4}(?:\.[0-9]{1,6})?)C(?=\s|$)")
_RAIL = re.compile(rf"(?<!\S)([A-Z][A-Z0-9_]*) ({_DIGITS})mW/{_DIGITS}mW(?=\s|$)")


def parse_line(line: str, t_ns: int) -> Sample | None:
    """One line as a Sample taken at `t_ns`; None for a line that is none of tegrastats'."""
    ram = _RAM.search(line)
    if not ram:
        return None
    used, total = (MIB * int(n) for n in ram.groups())
    fields: dict[str, Any] = {"ram_total_bytes": total, "ram_used_bytes": used} if used <= total else {}
    if swap := _SWAP.search(line):
        fields["swap_used_bytes"], fields["swap_total_bytes"] = (MIB * int(n) for n in swap.groups())
    if cpu := _CPU.search(line):
        cores = [_CORE.fullmatch(c) for c in cpu[1].split(",")]
        loads = tuple(_percent(c[1]) if c else None for c in cores)
        online = [x for x in loads if x is not None]
        fields |= {"cpu_loads_pct": loads, "cpu_mhz": tuple(float(c[2]) for c in cores if c)}
        fields["cpu_load_pct"] = round(sum(online) / len(online), 1) if online else None
    if gpu := _GPU.search(line):
        fields |= {"gpu_load_pct": _percent(gpu[1]), "gpu_mhz": float(gpu[2]) if gpu[2] else None}
    if emc := _EMC.search(line):
        fields |= {"emc_load_pct": _percent(emc[1]), "emc_mhz": float(emc[2])}
    temps = {name.lower(): float(value) for name, value in _TEMPERATURE.findall(line)}
    fields["temps_c"] = {name: value for name, value in temps.items() if -55 <= value <= 200}  # -256: no answer
    rails = {name: Rail(power_w=int(milliwatts) / 1000) for name, milliwatts in _RAIL.findall(line)}
    if TOTAL_RAIL in rails:
        fields |= {"power_w": rails[TOTAL_RAIL].power_w, "power_of": TOTAL_RAIL}
    return Sample(t_ns, "tegrastats", rails=rails, **fields)


def parse_log(lines: Iterable[str], interval_ms: float) -> list[Sample]:
    """Samples of a log that was written with `tegrastats --interval INTERVAL_MS`, the first at time 0.

    The lines' own clock has whole seconds, so time is counted in intervals.  A line that was cut leaves its place empty.
    """
    found = (parse_line(line, round(i * interval_ms * 1e6)) for i, line in enumerate(lines))
    return [sample for sample in found if sample is not None]


def _percent(text: str) -> float | None:
    return float(text) if int(text) <= 100 else None


class Tegrastats:
    """Runs tegrastats and reads what it prints; `close` ends it.  A sample is stamped when its line arrives.

    Missing where it cannot be started, and when it ends by itself.
    """

    name = "tegrastats"

    def __init__(self, command: Sequence[str] = ("tegrastats", "--interval", str(INTERVAL_MS))):
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, errors="replace"
            )
        except OSError as e:
            raise Missing(
                f"{command[0]} cannot be started ({e.strerror}): it is part of a Jetson's system; elsewhere take the source linux"
            ) from None
        self._arrived = threading.Condition()
        self._latest: Sample | None = None
        self._ended = False
        # A thread of its own: lines must not pile up in the pipe while nobody asks, or the next answer would be an old one.
        self._thread = threading.Thread(target=self._listen, name="tegrastats", daemon=True)
        self._thread.start()

    def read(self) -> Sample:
        """The newest line, waiting for it if it was handed out already."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: self._latest is not None or self._ended, timeout=5):
                raise Missing(
                    "tegrastats has printed nothing for 5 s: start it by hand to see why, or take the source tegra"
                )
            if self._latest is None:
                raise Missing("tegrastats has ended: start it by hand to see why, or take the source tegra")
            sample, self._latest = self._latest, None
            return sample

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join(timeout=5)
        if self._process.stdout:
            self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            sample = parse_line(line, time.monotonic_ns())
            if sample is not None:
                with self._arrived:
                    self._latest = sample
                    self._arrived.notify_all()
        with self._arrived:
            self._ended = True
            self._arrived.notify_all()
