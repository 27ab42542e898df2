"""One look at the machine (Sample), and the one thread that looks again and again (Recorder).

with Recorder(telemetry.best()) as recorder:
    begin = time.monotonic_ns(); work(); end = time.monotonic_ns()
print(energy.over(recorder.samples(), [(begin, end)]))
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Protocol

from quamba_edge.errors import BadUsage

FIRST_S = 5.0  # a source that has not answered by then is not waited for


@dataclass(frozen=True, slots=True)
class Rail:
    """A measured supply.  `limit_a` is its critical limit, `alarm` whether the chip says that it was passed."""

    power_w: float | None = None
    voltage_v: float | None = None
    current_a: float | None = None
    limit_a: float | None = None
    alarm: bool | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """What was read, each value with its unit in its name; what the machine lacks is None or not in the table.

    t_ns                monotonic clock (time.monotonic_ns), right after power was read
    source              the reader: tegra, tegrastats, jtop, linux, nvidia
    power_w, power_of   instantaneous draw, and of what: VDD_IN is the whole module, package-0 a CPU, gpu-0 a card
    power_interval_ms   how often the sensor itself has a new value, where it says so
    energy_j            counter of the hardware, where there is one: only differences mean something
    rails               by name; nested, so they must not be added up (VDD_IN holds all others)
    over_current_events since boot: oc1 under-voltage, oc2 average, oc3 instantaneous over-current
    temps_c             by zone; those that cannot be read now are left out
    cpu_loads_pct       by core, None for one that is offline; like cpu_load_pct over the time since the last look
    cpu_mhz             now, one for each cluster (cpufreq policy)
    emc_*               memory controller: emc_load_pct and emc_mhz need root on a Jetson, emc_max_mhz is the mode's cap
    power_mode          by name, as nvpmodel calls it
    """

    t_ns: int
    source: str
    power_w: float | None = None
    power_of: str | None = None
    power_interval_ms: float | None = None
    energy_j: float | None = None
    rails: Mapping[str, Rail] = field(default_factory=dict)
    over_current_events: Mapping[str, int] = field(default_factory=dict)
    gpu_load_pct: float | None = None
    gpu_mhz: float | None = None
    gpu_max_mhz: float | None = None
    gpu_memory_used_bytes: int | None = None
    gpu_memory_total_bytes: int | None = None
    cpu_load_pct: float | None = None
    cpu_loads_pct: tuple[float | None, ...] = ()
    cpu_mhz: tuple[float, ...] = ()
    emc_load_pct: float | None = None
    emc_mhz: float | None = None
    emc_max_mhz: float | None = None
    ram_total_bytes: int | None = None
    ram_available_bytes: int | None = None
    ram_free_bytes: int | None = None
    ram_used_bytes: int | None = None
    swap_total_bytes: int | None = None
    swap_used_bytes: int | None = None
    cma_free_bytes: int | None = None
    nvmap_used_bytes: int | None = None
    temps_c: Mapping[str, float] = field(default_factory=dict)
    fan_pct: float | None = None
    fan_rpm: int | None = None
    power_mode: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Every field, as plain JSON values."""
        return asdict(self)


class Source(Protocol):
    """Something that can be read again and again.  `read` raises nothing for a sensor that fails: its field is None."""

    name: str

    def read(self) -> Sample: ...
    def close(self) -> None: ...


class Recorder:
    """Reads `source` `hz` times a second in one thread of its own, and keeps the last `keep_s` seconds.

    hz: 0.1 to 20; the sensors of a Jetson have nothing more to say above that, and watching must cost next to nothing.
    The clock is monotonic; a look that comes late is not made up for.  If the source breaks, recording ends and `error` says why.
    """

    def __init__(self, source: Source, hz: float = 10.0, keep_s: float = 600.0):
        if not 0.1 <= hz <= 20:
            raise BadUsage(f"{hz} samples a second: expected 0.1 to 20")
        self.source, self.hz = source, hz
        self.error: Exception | None = None
        self._samples: deque[Sample] = deque(maxlen=max(2, int(hz * keep_s)))
        self._stop, self._looked = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._began_ns, self._busy_ns, self._ended_ns = 0, 0, 0

    def start(self) -> Recorder:
        """Begin, and return after the first sample, so that what is done next is bracketed."""
        assert self._thread is None, "a recorder records once"
        self._began_ns = time.monotonic_ns()
        self._thread = threading.Thread(target=self._record, name="telemetry", daemon=True)
        self._thread.start()
        self._looked.wait(FIRST_S)
        return self

    def stop(self) -> None:
        """Take one last sample (so that what just ended is bracketed), and end the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def samples(self) -> list[Sample]:
        """What is kept, oldest first."""
        while True:
            try:
                return list(self._samples)
            except RuntimeError:  # the thread added one meanwhile
                continue

    @property
    def latest(self) -> Sample | None:
        return self._samples[-1] if self._samples else None

    @property
    def cost_pct(self) -> float | None:
        """Share of one core that the thread has used so far, in percent; None before it has run."""
        span = (self._ended_ns or time.monotonic_ns()) - self._began_ns
        return 100 * self._busy_ns / span if self._busy_ns and span > 0 else None

    def __enter__(self) -> Recorder:
        return self.start()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _record(self) -> None:
        period = 1 / self.hz
        due = time.monotonic()
        try:
            while True:
                last = self._stop.is_set()
                self._samples.append(self.source.read())
                self._looked.set()
                self._busy_ns = time.thread_time_ns()
                if last:
                    break
                due = max(due + period, time.monotonic())
                self._stop.wait(due - time.monotonic())
        except Exception as e:
            self.error = e
        finally:
            self._looked.set()
            self._ended_ns = time.monotonic_ns()
