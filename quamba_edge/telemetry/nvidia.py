"""Workstations and servers with an NVIDIA card: the card from NVIDIA's own library (nvidia-ml-py), the rest from Linux.

Not for Jetsons: there the library answers "not supported" or, worse, nothing at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from quamba_edge.errors import Missing
from quamba_edge.telemetry.linux import Linux
from quamba_edge.telemetry.sample import Rail, Sample


class Nvidia:
    """Card number `index`.  power_w and energy_j are the card's; processors measured by RAPL stay in `rails`.

    Missing where the Python package, the driver or the card is not there.
    """

    name = "nvidia"

    def __init__(self, index: int = 0):
        try:
            import pynvml
        except ImportError:
            raise Missing("nvidia-ml-py is not installed: pip install 'quamba-edge[nvidia]'") from None
        self._ml: Any = pynvml
        try:
            pynvml.nvmlInit()
            self._card = pynvml.nvmlDeviceGetHandleByIndex(index)
        except pynvml.NVMLError as e:
            raise Missing(
                f"NVIDIA's library finds no card ({e}): `nvidia-smi` says more; without a card take linux"
            ) from None
        self._index, self._linux = index, Linux()

    def read(self) -> Sample:
        ml, card = self._ml, self._card
        milliwatts = self._ask(ml.nvmlDeviceGetPowerUsage, card)
        now = time.monotonic_ns()
        millijoules = self._ask(ml.nvmlDeviceGetTotalEnergyConsumption, card)
        load = self._ask(ml.nvmlDeviceGetUtilizationRates, card)
        memory = self._ask(ml.nvmlDeviceGetMemoryInfo, card)
        clock = self._ask(ml.nvmlDeviceGetClockInfo, card, ml.NVML_CLOCK_SM)
        heat = self._ask(ml.nvmlDeviceGetTemperature, card, ml.NVML_TEMPERATURE_GPU)
        host = self._linux.read()
        name = f"gpu-{self._index}"
        watts = milliwatts / 1000 if milliwatts is not None else None
        rails = {name: Rail(power_w=watts)} if watts is not None else {}
        if host.power_w is not None and host.power_of:
            rails[host.power_of] = Rail(power_w=host.power_w)
        return replace(
            host,
            t_ns=now,
            source=self.name,
            power_w=watts,
            power_of=name if watts is not None or millijoules is not None else None,
            energy_j=millijoules / 1000 if millijoules is not None else None,
            rails=rails,
            gpu_load_pct=float(load.gpu) if load is not None else None,
            gpu_mhz=float(clock) if clock is not None else None,
            gpu_memory_used_bytes=memory.used if memory is not None else None,
            gpu_memory_total_bytes=memory.total if memory is not None else None,
            temps_c={**host.temps_c, **({name: float(heat)} if heat is not None else {})},
        )

    def close(self) -> None:
        self._ask(self._ml.nvmlShutdown)

    def _ask(self, question: Callable[..., Any], *about: Any) -> Any:
        """The answer, or None for what this card does not tell."""
        try:
            return question(*about)
        except self._ml.NVMLError:
            return None
