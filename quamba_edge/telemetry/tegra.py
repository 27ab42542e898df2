"""A Jetson from its own files, without root, without services: what is where, and in which unit.

power   /sys/class/hwmon/*/name says "ina3221"; inN_label names the rail, inN_input is mV, currN_input mA.  The number of a hwmon
        folder changes between boots, so it is looked for by name, and again when it stops answering.
GPU     load is per mille; its place differs between JetPack 5 and 6.  Clock in Hz, from devfreq.  NVML knows nothing here.
EMC     clock and load are root's (debugfs); the cap of the power mode is everybody's.
events  hwmon "soctherm_oc" counts over-current since boot.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quamba_edge.devices import NESTED_RAILS, TOTAL_RAIL
from quamba_edge.telemetry import linux, nvpmodel
from quamba_edge.telemetry.files import Tree, read_bytes, within
from quamba_edge.telemetry.sample import Rail, Sample

GPU_LOAD = (
    "/sys/devices/platform/gpu.0/load",
    "/sys/devices/platform/bus@0/17000000.gpu/load",
    "/sys/devices/17000000.ga10b/load",
)
EMC_RATE = "/sys/kernel/debug/bpmp/debug/clk/emc/rate"
EMC_ACTIVITY = ("/sys/kernel/debug/cactmon/mc_all", "/sys/kernel/debug/bpmp/debug/actmon/mc_all_avg_activity")
EMC_CAP = "/sys/kernel/nvpmodel_clk_cap/emc"
OVER_CURRENT = ("oc1", "oc2", "oc3")
SUM_LABEL = "sum of shunt voltages"  # a channel of the chip that is no rail


@dataclass(frozen=True)
class _Supply:
    """A rail's files: hwmon folder and channel number."""

    name: str
    folder: str
    channel: int

    def file(self, kind: str, ending: str) -> str:
        return f"{self.folder}/{kind}{self.channel}_{ending}"


def is_tegra(tree: Tree) -> bool:
    """A Jetson says so in its release file or its device tree."""
    return tree.exists("/etc/nv_tegra_release") or "nvidia,tegra" in (tree.text("/proc/device-tree/compatible") or "")


class Tegra:
    """Reads the board under `root`; `read` and `clock` stand in for disk and time in tests."""

    name = "tegra"

    def __init__(
        self,
        root: Path = Path("/"),
        read: Callable[[str], bytes] = read_bytes,
        clock: Callable[[], int] = time.monotonic_ns,
    ):
        self.tree, self._clock = Tree(root, read), clock
        self._cpu = linux.CpuLoad(self.tree)
        self._slow: dict[str, object] = {}
        self._slow_ns: int | None = None
        self._lost = False  # a sensor did not answer: look where it is now
        self._gpu_load: str | None = None
        self._gpu_clock: str | None = None
        self._alarms: dict[str, bool] = {}
        self._find()

    def read(self) -> Sample:
        """Power and GPU as they are; what changes slowly is at most half a second old."""
        if self._slow_ns is None or self._clock() - self._slow_ns >= linux.SLOW_NS:
            if self._slow_ns is not None and self._lost:
                self._find()
            self._slow, self._slow_ns = self._read_slow(), self._clock()
        rails: dict[str, Rail] = {}
        self._lost = not self._supplies
        now = self._clock()
        for supply in self._supplies:  # the whole module first, and the time right after it
            rails[supply.name] = rail = self._rail(supply)
            self._lost |= rail.power_w is None
            if supply.name == TOTAL_RAIL:
                now = self._clock()
        total = rails.get(TOTAL_RAIL)
        load = within(self.tree.integer(self._gpu_load), 0, 1000) if self._gpu_load else None
        fields = {
            "rails": rails,
            "power_w": total.power_w if total else None,
            "power_of": TOTAL_RAIL if total else None,
            "gpu_load_pct": load / 10 if load is not None else None,
            "gpu_mhz": self._hz(f"{self._gpu_clock}/cur_freq") if self._gpu_clock else None,
            **self._slow,
        }
        return Sample(now, self.name, **fields)  # type: ignore[arg-type]

    def close(self) -> None:
        pass

    def _find(self) -> None:
        """Where the sensors are at present: looking for them costs more than reading them."""
        self._clocks, self._zones = linux.Clocks(self.tree), linux.Zones(self.tree)
        self._modes = nvpmodel.read(self.tree)
        names = {folder: self.tree.text(f"{folder}/name") for folder in self.tree.glob("/sys/class/hwmon/hwmon[0-9]*")}
        by_name = {name: folder for folder, name in reversed(names.items())}
        supplies = []
        for folder in (f for f, name in names.items() if name == "ina3221"):
            for path in self.tree.glob(f"{folder}/in[0-9]*_label"):
                channel = int(path.rsplit("/in", 1)[1].split("_")[0])
                label = self.tree.text(path)
                if label and label != SUM_LABEL and self.tree.exists(f"{folder}/curr{channel}_input"):
                    supplies.append(_Supply(label, folder, channel))
        order = (TOTAL_RAIL, *NESTED_RAILS)
        self._supplies = sorted(supplies, key=lambda s: order.index(s.name) if s.name in order else len(order))
        self._limits = {s.name: within(self.tree.integer(s.file("curr", "crit")), 1, 10**6) for s in supplies}
        self._lost = not supplies
        interval = self.tree.integer(f"{supplies[0].folder}/update_interval") if supplies else None
        self._power_ms = within(interval, 1, 10**6)
        self._events, self._fan = by_name.get("soctherm_oc"), by_name.get("pwmfan")
        self._fan_speed = by_name.get("pwm_tach")
        loads = [*GPU_LOAD, *self.tree.glob("/sys/class/devfreq/*gpu*/device/load")]
        self._gpu_load = next((p for p in loads if self.tree.integer(p) is not None), None)
        clocks = (
            p for pattern in ("*.gpu", "*.ga10b", "*gpu*") for p in self.tree.glob(f"/sys/class/devfreq/{pattern}")
        )
        self._gpu_clock = next(clocks, None)

    def _rail(self, supply: _Supply) -> Rail:
        millivolts = within(self.tree.integer(supply.file("in", "input")), 0, 60_000)
        milliamps = within(self.tree.integer(supply.file("curr", "input")), 0, 100_000)
        limit = self._limits.get(supply.name)
        return Rail(
            millivolts * milliamps / 1e6 if millivolts is not None and milliamps is not None else None,
            millivolts / 1000 if millivolts is not None else None,
            milliamps / 1000 if milliamps is not None else None,
            limit / 1000 if limit is not None else None,
            self._alarms.get(supply.name),
        )

    def _read_slow(self) -> dict[str, object]:
        tree = self.tree
        self._alarms = {
            s.name: bool(alarm)
            for s in self._supplies
            if (alarm := within(tree.integer(s.file("curr", "crit_alarm")), 0, 1)) is not None
        }
        events = {k: tree.integer(f"{self._events}/{k}_event_cnt") for k in OVER_CURRENT} if self._events else {}
        # The actmon counter is in percent of a kHz: 100 times the kHz at which the controller would be always busy.
        emc_mhz = self._hz(EMC_RATE)
        activity = next((n for p in EMC_ACTIVITY if (n := tree.integer(p)) is not None), None)
        share = activity / (emc_mhz * 1000) if emc_mhz and activity is not None else None
        pwm = within(tree.integer(f"{self._fan}/pwm1"), 0, 255) if self._fan else None
        total, each = self._cpu.percent()
        return {
            **linux.memory(tree),
            "power_interval_ms": self._power_ms,
            "over_current_events": {k: n for k, n in events.items() if n is not None and n >= 0},
            "gpu_max_mhz": self._hz(f"{self._gpu_clock}/max_freq") if self._gpu_clock else None,
            "cpu_load_pct": total,
            "cpu_loads_pct": each,
            "cpu_mhz": self._clocks.mhz(),
            "emc_mhz": emc_mhz,
            "emc_load_pct": round(share, 1) if share is not None and 0 <= share <= 100 else None,
            "emc_max_mhz": self._hz(EMC_CAP),
            "temps_c": self._zones.celsius(),
            "fan_pct": round(100 * pwm / 255, 1) if pwm is not None else None,
            "fan_rpm": within(tree.integer(f"{self._fan_speed}/rpm"), 0, 50_000) if self._fan_speed else None,
            "power_mode": nvpmodel.current(tree, self._modes),
        }

    def _hz(self, path: str) -> float | None:
        hz = within(self.tree.integer(path), 10**6, 10**10)
        return hz / 1e6 if hz is not None else None
