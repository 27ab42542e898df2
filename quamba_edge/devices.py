"""Boards as data: how to recognise one, which power modes it has, where its limits lie.

Mode numbers are not here: they differ between boards and JetPacks, and only the board's own /etc/nvpmodel.conf knows them
(telemetry/nvpmodel.py).  Clocks are NVIDIA's, from the "Power and Performance" page of L4T r39.2.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PowerMode:
    """Largest clocks of a mode; `bandwidth_gbps` is what the memory clock allows (128 bits, two transfers a clock)."""

    name: str
    cpus: int
    cpu_mhz: float
    gpu_mhz: float
    emc_mhz: float

    @property
    def bandwidth_gbps(self) -> float:
        return self.emc_mhz * 2 * 16 / 1000


@dataclass(frozen=True)
class Board:
    """`parts` are module part numbers as the device tree spells them.  Temperatures in degrees Celsius."""

    name: str
    title: str
    parts: tuple[str, ...]
    sm: int
    modes: tuple[PowerMode, ...] = ()
    throttle_c: float = 99.0
    shutdown_c: float = 104.5


# What VDD_IN of a module holds is already all of it; the others are parts of it.
TOTAL_RAIL = "VDD_IN"
NESTED_RAILS = ("VDD_CPU_GPU_CV", "VDD_SOC")

ORIN_NANO_8GB = Board(
    "orin-nano-8gb",
    "Jetson Orin Nano 8GB",
    ("p3767-0003", "p3767-0005"),
    87,
    (
        PowerMode("15W", 6, 1497.6, 612, 2133),
        PowerMode("25W", 6, 1344, 918, 3199),
        PowerMode("MAXN_SUPER", 6, 1728, 1020, 3199),
    ),
)
BOARDS = (
    ORIN_NANO_8GB,
    Board("orin-nano-4gb", "Jetson Orin Nano 4GB", ("p3767-0004",), 87),
    Board("orin-nx-16gb", "Jetson Orin NX 16GB", ("p3767-0000",), 87),
    Board("orin-nx-8gb", "Jetson Orin NX 8GB", ("p3767-0001",), 87),
)


def find(compatible: str) -> Board | None:
    """The board whose part number is in a device tree's `compatible` list (names separated by NULs or commas)."""
    return next((b for b in BOARDS if any(part in compatible for part in b.parts)), None)


def mode_facts(board: Board | None, name: str) -> PowerMode | None:
    """What is known of a board's mode of that name."""
    return next((m for m in board.modes if m.name == name), None) if board else None
