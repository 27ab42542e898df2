"""jetson-stats as a source, for boards on which it runs anyway.  AGPL-3.0, so it is imported only when asked for by name.

It talks to a root service that forks several programs for each tick: more often than twice a second costs real watts, so this
source has a new sample every half second, which is too few for energy (the source tegra has them at 10 Hz).  Its "avg" figures are
a smoother, not a mean, and are not read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from quamba_edge.devices import TOTAL_RAIL
from quamba_edge.errors import Missing
from quamba_edge.telemetry.sample import Rail, Sample

INTERVAL_S = 0.5
# What its exceptions say, and what to do about it.
REMEDIES = (
    ("not active", "start it with: sudo systemctl start jtop.service"),
    ("can't access", "add yourself to its group and log in again: sudo usermod -aG jtop $USER"),
    (
        "Mismatch version",
        "client and service must be of one version: sudo pip install -U jetson-stats, then sudo systemctl restart jtop",
    ),
    (
        "Mismatch of Python",
        "client and service must run on one Python: install jetson-stats with the same python3 as the service",
    ),
    ("Lost connection", "restart it with: sudo systemctl restart jtop.service"),
)


class Jtop:
    """Missing where jetson-stats is not installed or its service does not answer, with what to do."""

    name = "jtop"

    def __init__(self) -> None:
        try:
            from jtop import jtop
        except ImportError:
            raise Missing(
                "jetson-stats is not installed: pip install 'quamba-edge[jetson]', or take the source tegra"
            ) from None
        self._client = jtop(interval=INTERVAL_S)
        try:
            self._client.start()
        except Exception as e:
            raise _explained(e) from None

    def read(self) -> Sample:
        """The service's next sample; waits for it."""
        try:
            alive = self._client.ok()
        except Exception as e:
            raise _explained(e) from None
        if not alive:
            raise Missing("jtop.service gave no sample in time: sudo systemctl restart jtop.service")
        return from_client(self._client, time.monotonic_ns())

    def close(self) -> None:
        self._client.close()


def from_client(client: Any, t_ns: int) -> Sample:
    """A Sample of what a jtop client holds; whatever is not there or not as expected is None."""
    power, memory, gpu = _table(client.power), _table(client.memory), _table(client.gpu)
    ram, swap, emc = (_table(memory.get(k)) for k in ("RAM", "SWAP", "EMC"))
    total = _table(power.get("tot"))
    measured = {**_table(power.get("rail"))}
    if total.get("name") == TOTAL_RAIL:  # else "tot" is a sum of rails, which are nested
        measured = {TOTAL_RAIL: total, **measured}
    rails = {str(name): _rail(_table(r)) for name, r in measured.items()}
    card = _table(next(iter(gpu.values()), None))  # called ga10b or gpu, as the JetPack likes
    status, clock = _table(card.get("status")), _table(card.get("freq"))
    temps = {
        str(n): _number(_table(t).get("temp")) for n, t in _table(client.temperature).items() if _table(t).get("online")
    }
    return Sample(
        t_ns,
        "jtop",
        power_w=rails[TOTAL_RAIL].power_w if TOTAL_RAIL in rails else None,
        power_of=TOTAL_RAIL if TOTAL_RAIL in rails else None,
        power_interval_ms=1000 * INTERVAL_S,
        rails=rails,
        gpu_load_pct=_number(status.get("load")),
        gpu_mhz=_mhz(clock.get("cur")),
        gpu_max_mhz=_mhz(clock.get("max")),
        emc_load_pct=_number(emc.get("val")),
        emc_mhz=_mhz(emc.get("cur")),
        emc_max_mhz=_mhz(emc.get("max")),
        ram_total_bytes=_bytes(ram.get("tot")),
        ram_used_bytes=_bytes(ram.get("used")),
        ram_free_bytes=_bytes(ram.get("free")),
        nvmap_used_bytes=_bytes(ram.get("shared")),
        swap_total_bytes=_bytes(swap.get("tot")),
        swap_used_bytes=_bytes(swap.get("used")),
        temps_c={n.lower(): t for n, t in temps.items() if t is not None and -55 <= t <= 200},
        power_mode=str(client.nvpmodel) if client.nvpmodel else None,
    )


def _explained(error: Exception) -> Missing:
    text = " ".join(str(error).split()) or type(error).__name__
    remedy = next((r for sign, r in REMEDIES if sign in text), "or take the source tegra, which needs no service")
    return Missing(f"jtop says {text!r}: {remedy}")


def _rail(raw: Mapping[str, Any]) -> Rail:
    milli = {k: _number(raw.get(k)) for k in ("power", "volt", "curr", "crit")}
    power, volts, amps, limit = (v / 1000 if v is not None else None for v in milli.values())
    return Rail(power, volts, amps, limit if limit else None)


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _mhz(khz: Any) -> float | None:
    found = _number(khz)
    return found / 1000 if found is not None else None


def _bytes(kib: Any) -> int | None:
    found = _number(kib)
    return int(1024 * found) if found is not None else None
