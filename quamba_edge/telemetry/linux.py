"""Any Linux: /proc, cpufreq, thermal zones, and the energy counters of Intel and AMD processors (RAPL, through powercap).

The functions are also what the Jetson reader (tegra.py) is made of: there, too, CPU, memory and temperatures are Linux's.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from quamba_edge.telemetry.files import Tree, read_bytes, within
from quamba_edge.telemetry.sample import Sample

SLOW_NS = (
    500_000_000  # temperatures, memory and clocks are read twice a second: they mean nothing faster, and cost most
)
POWERCAP = "/sys/class/powercap"


class Linux:
    """Reads the machine under `root`.  Energy counters are root's on most systems: without them power is None."""

    name = "linux"

    def __init__(
        self,
        root: Path = Path("/"),
        read: Callable[[str], bytes] = read_bytes,
        clock: Callable[[], int] = time.monotonic_ns,
    ):
        self.tree, self._clock = Tree(root, read), clock
        self._cpu, self._rapl = CpuLoad(self.tree), Rapl(self.tree)
        self._clocks, self._zones = Clocks(self.tree), Zones(self.tree)
        self._slow: dict[str, object] = {}
        self._slow_ns: int | None = None

    def read(self) -> Sample:
        energy = self._rapl.joules()
        now = self._clock()
        watts = self._rapl.watts(energy, now)
        if self._slow_ns is None or now - self._slow_ns >= SLOW_NS:
            total, each = self._cpu.percent()
            self._slow = {
                **memory(self.tree),
                "cpu_load_pct": total,
                "cpu_loads_pct": each,
                "cpu_mhz": self._clocks.mhz(),
                "temps_c": self._zones.celsius(),
            }
            self._slow_ns = now
        fields = {"energy_j": energy, "power_w": watts, "power_of": self._rapl.of, **self._slow}
        return Sample(now, self.name, **fields)  # type: ignore[arg-type]

    def close(self) -> None:
        pass


class CpuLoad:
    """Busy time from /proc/stat, between one call and the next."""

    def __init__(self, tree: Tree):
        self._tree = tree
        self._last: dict[str, tuple[int, int]] = {}

    def percent(self) -> tuple[float | None, tuple[float | None, ...]]:
        """(of all cores together, of each by its number).  None the first time, and for cores that are offline."""
        now = cpu_times(self._tree.text("/proc/stat") or "")
        shares = {name: _share(self._last.get(name), times) for name, times in now.items()}
        self._last = now
        cores = [int(name[3:]) for name in now if name != "cpu"]
        return shares.get("cpu"), tuple(shares.get(f"cpu{i}") for i in range(max(cores, default=-1) + 1))


def cpu_times(text: str) -> dict[str, tuple[int, int]]:
    """{"cpu", "cpu0", ...: (busy, all)} in clock ticks; waiting for a disk is idle."""
    found = {}
    for name, numbers in re.findall(r"^(cpu[0-9]{0,4})((?: +[0-9]{1,19}){4,12}) *$", text, re.MULTILINE):
        ticks = [int(n) for n in numbers.split()[:8]]  # guest time, after these, is already in user time
        found[name] = sum(ticks) - sum(ticks[3:5]), sum(ticks)
    return found


def _share(before: tuple[int, int] | None, now: tuple[int, int]) -> float | None:
    if before is None or now[1] <= before[1]:
        return None
    return min(100.0, max(0.0, round(100 * (now[0] - before[0]) / (now[1] - before[1]), 1)))


class Clocks:
    """Clocks of the cpufreq policies; which there are is looked for once."""

    def __init__(self, tree: Tree):
        self._tree = tree
        self._files = [f"{p}/scaling_cur_freq" for p in tree.glob("/sys/devices/system/cpu/cpufreq/policy[0-9]*")]

    def mhz(self) -> tuple[float, ...]:
        """Of each policy that says one."""
        found = (within(self._tree.integer(f), 1, 10**8) for f in self._files)
        return tuple(khz / 1000 for khz in found if khz is not None)


def memory(tree: Tree) -> dict[str, int | None]:
    """The memory fields of a Sample.  NvMap is the memory of a Jetson's GPU; not every kernel tells it."""
    held = meminfo(tree.text("/proc/meminfo") or "")
    total, available = held.get("MemTotal"), held.get("MemAvailable")
    swap, unused = held.get("SwapTotal"), held.get("SwapFree")
    return {
        "ram_total_bytes": total,
        "ram_available_bytes": available,
        "ram_free_bytes": held.get("MemFree"),
        "ram_used_bytes": total - available if total is not None and available is not None else None,
        "swap_total_bytes": swap,
        "swap_used_bytes": swap - unused if swap is not None and unused is not None else None,
        "cma_free_bytes": held.get("CmaFree"),
        "nvmap_used_bytes": held.get("NvMapMemUsed"),
    }


def meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo in bytes; lines in any other unit than kB are left out."""
    found = re.findall(r"^([A-Za-z0-9_()]+): +([0-9]{1,15}) kB$", text, re.MULTILINE)
    return {name: 1024 * int(kib) for name, kib in found}


class Zones:
    """Thermal zones by name: "cpu-thermal" and "CPU-therm" are both cpu.  Which there are is looked for once."""

    def __init__(self, tree: Tree):
        self._tree = tree
        self._files: dict[str, str] = {}
        for zone in tree.glob("/sys/class/thermal/thermal_zone[0-9]*"):
            name = re.sub(r"[-_]therm(al)?$", "", (tree.text(f"{zone}/type") or "").lower())
            if name in self._files:  # desktops have several of one type
                name = f"{name}-{zone.rsplit('zone', 1)[1]}"
            if name:
                self._files[name] = f"{zone}/temp"

    def celsius(self) -> dict[str, float]:
        """Of every zone that can be read now."""
        found = {name: within(self._tree.integer(file), -55_000, 200_000) for name, file in self._files.items()}
        return {name: milli / 1000 for name, milli in found.items() if milli is not None}


class Rapl:
    """Sum of the processor packages' energy counters.  Their cores and graphics lie inside a package: never added."""

    def __init__(self, tree: Tree):
        self._tree = tree
        zones = {z: tree.text(f"{z}/name") or "" for z in tree.glob(f"{POWERCAP}/*-rapl:[0-9]*")}
        packages = {z: n for z, n in zones.items() if re.fullmatch(r"package-[0-9]+", n) and z.count(":") == 1}
        self._zones = [z for z in packages if tree.integer(f"{z}/energy_uj") is not None]
        self.of = "+".join(packages[z] for z in self._zones) or None
        self._ranges = {z: tree.integer(f"{z}/max_energy_range_uj") or 0 for z in self._zones}
        self._counts: dict[str, int] = {}
        self._microjoules = 0
        self._before: tuple[float, int] | None = None

    def joules(self) -> float | None:
        """Used since the first call, wrapped counters counted on; None without them, or once one is lost."""
        for zone in self._zones:
            count = self._tree.integer(f"{zone}/energy_uj")
            if count is None:
                self._zones, self.of = [], None
                break
            step = count - self._counts.get(zone, count)
            self._microjoules += step if step >= 0 else max(0, step + self._ranges[zone])
            self._counts[zone] = count
        return self._microjoules / 1e6 if self._zones else None

    def watts(self, joules: float | None, now_ns: int) -> float | None:
        """Mean since the last call."""
        before, self._before = self._before, (joules, now_ns) if joules is not None else None
        if before is None or joules is None or now_ns <= before[1]:
            return None
        return (joules - before[0]) / ((now_ns - before[1]) / 1e9)
