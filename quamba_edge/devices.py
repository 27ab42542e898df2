"""Boards as data: how to recognise one, which power modes it has, where its limits lie.

Mode numbers are not here: they differ between boards and JetPacks, and only the board's own /etc/nvpmodel.conf knows them
(telemetry/nvpmodel.py).  Clocks of the Orin Nano 8GB are NVIDIA's, from the "Power and Performance" page of L4T r39.2; of the other
boards there is one row, the largest clocks of NVIDIA's data sheet, before the "Super" settings.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PowerMode:
    """Largest clocks of a mode; `bandwidth_gbps` is what the memory clock allows (two transfers a clock of the bus's width).

    watts: what the mode holds the module to on average; None where it sets no limit.
    """

    name: str
    cpus: int
    cpu_mhz: float
    gpu_mhz: float
    emc_mhz: float
    bus_bytes: int = 16
    watts: float | None = None

    @property
    def bandwidth_gbps(self) -> float:
        return self.emc_mhz * 2 * self.bus_bytes / 1000


@dataclass(frozen=True)
class Board:
    """`parts` are module part numbers as the device tree spells them.  Temperatures in degrees Celsius.

    sms            multiprocessors of the GPU
    memory_bytes   MemTotal, what Linux has of the module's memory; 7607 MiB of 8 were reported under L4T 36.5, and the others
                   are reckoned by the same share
    """

    name: str
    title: str
    parts: tuple[str, ...]
    sm: int
    modes: tuple[PowerMode, ...] = ()
    throttle_c: float = 99.0
    shutdown_c: float = 104.5
    sms: int = 8
    memory_bytes: int = 7607 << 20


# What VDD_IN of a module holds is already all of it; the others are parts of it.
TOTAL_RAIL = "VDD_IN"
NESTED_RAILS = ("VDD_CPU_GPU_CV", "VDD_SOC")

ORIN_NANO_8GB = Board(
    "orin-nano-8gb",
    "Jetson Orin Nano 8GB",
    ("p3767-0003", "p3767-0005"),
    87,
    (
        PowerMode("15W", 6, 1497.6, 612, 2133, watts=15),
        PowerMode("25W", 6, 1344, 918, 3199, watts=25),
        PowerMode("MAXN_SUPER", 6, 1728, 1020, 3199),
    ),
)


def _board(name: str, title: str, parts: tuple[str, ...], gb: int, sms: int, mode: PowerMode) -> Board:
    return Board(name, title, parts, 87, (mode,), sms=sms, memory_bytes=(7607 << 20) * gb // 8)


BOARDS = (
    ORIN_NANO_8GB,
    _board("orin-nano-4gb", "Jetson Orin Nano 4GB", ("p3767-0004",), 4, 4, PowerMode("10W", 6, 1510, 625, 2133, 8, 10)),
    _board("orin-nx-16gb", "Jetson Orin NX 16GB", ("p3767-0000",), 16, 8, PowerMode("MAXN", 8, 1984, 918, 3199)),
    _board("orin-nx-8gb", "Jetson Orin NX 8GB", ("p3767-0001",), 8, 8, PowerMode("MAXN", 6, 1984, 765, 3199)),
    _board(
        "agx-orin-64gb", "Jetson AGX Orin 64GB", ("p3701-0005",), 64, 16, PowerMode("MAXN", 12, 2201.6, 1300, 3199, 32)
    ),
    _board(
        "agx-orin-32gb", "Jetson AGX Orin 32GB", ("p3701-0004",), 32, 14, PowerMode("MAXN", 8, 2188.8, 930, 3199, 32)
    ),
)


def find(compatible: str) -> Board | None:
    """The board whose part number is in a device tree's `compatible` list (names separated by NULs or commas)."""
    return next((b for b in BOARDS if any(part in compatible for part in b.parts)), None)


def mode_facts(board: Board | None, name: str) -> PowerMode | None:
    """What is known of a board's mode of that name."""
    return next((m for m in board.modes if m.name == name), None) if board else None


def named(name: str) -> Board | None:
    """The board called so, such as "orin-nano-8gb"."""
    return next((b for b in BOARDS if b.name == name), None)
