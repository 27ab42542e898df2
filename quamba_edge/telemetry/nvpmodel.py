"""Power modes of a Jetson by name, read without root: /etc/nvpmodel.conf and what nvpmodel last wrote down.

Mode numbers mean nothing by themselves: 0 is 15W on an Orin Nano and something else elsewhere, so everything here goes by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from quamba_edge.telemetry.files import Tree

CONF, STATUS = "/etc/nvpmodel.conf", "/var/lib/nvpmodel/status"


@dataclass(frozen=True)
class Mode:
    """A mode as the board's file has it.  Clocks are caps, None where the file gives none (which also means no cap).

    tpc_mask says which parts of the GPU are powered; a mode with another mask than the present one needs a reboot.
    """

    id: int
    name: str
    cpu_max_mhz: float | None = None
    gpu_max_mhz: float | None = None
    emc_max_mhz: float | None = None
    tpc_mask: int | None = None


@dataclass(frozen=True)
class Modes:
    """`default` and `current` are names, None where the board does not say."""

    modes: tuple[Mode, ...] = ()
    default: str | None = None
    current: str | None = None

    def named(self, name: str) -> Mode | None:
        return next((m for m in self.modes if m.name == name), None)


def read(tree: Tree) -> Modes:
    """Modes of this board and the one it is in; empty where there is no such thing."""
    modes, number = parse_conf(tree.text(CONF) or "")
    known = Modes(modes, next((m.name for m in modes if m.id == number), None))
    return replace(known, current=current(tree, known))


def current(tree: Tree, modes: Modes) -> str | None:
    """Name of the mode that is on now, of modes that were read before."""
    number = parse_status(tree.text(STATUS) or "")
    return next((m.name for m in modes.modes if m.id == number), None)


def parse_status(text: str) -> int | None:
    """The number in "pmode:0002 fmode:quiet"."""
    found = re.search(r"\bpmode:([0-9]{1,6})\b", text)
    return int(found[1]) if found else None


def parse_conf(text: str) -> tuple[tuple[Mode, ...], int | None]:
    """(modes in the file's order, number of the default).  Lines that say something else are skipped."""
    modes: list[Mode] = []
    default = None
    about: dict[str, str] = {}
    caps: dict[str, int] = {}

    def finish() -> None:
        if about and all(m.id != int(about["ID"]) for m in modes):
            modes.append(
                Mode(
                    int(about["ID"]),
                    about["NAME"],
                    _mhz(caps.get("CPU"), 1e3),
                    _mhz(caps.get("GPU"), 1e6),
                    _mhz(caps.get("EMC"), 1e6),
                    caps.get("TPC"),
                )
            )
        about.clear()
        caps.clear()

    for line in text.splitlines():
        line = line.split("#")[0].strip()
        if tag := re.fullmatch(r"<\s*([A-Z_]+)\s+(.*?)\s*>", line):
            finish()
            fields = dict(re.findall(r"([A-Z_]+)=(\S+)", tag[2]))
            if tag[1] == "POWER_MODEL" and _number(fields.get("ID")) is not None and "NAME" in fields:
                about.update(fields)
            if tag[1] == "PM_CONFIG":
                default = _number(fields.get("DEFAULT"))
        elif about and (cap := re.fullmatch(r"(CPU|GPU|EMC)(?:_\w+)? MAX_FREQ ([0-9]{1,12})", line)):
            caps[cap[1]] = max(caps.get(cap[1], 0), int(cap[2]))  # the fastest of several clusters
        elif about and (mask := re.search(r"\bTPC_PG_MASK ([0-9]{1,6})$", line)):
            caps["TPC"] = int(mask[1])
    finish()
    return tuple(modes), default


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,6}", text) else None


def _mhz(value: int | None, per_mhz: float) -> float | None:
    return value / per_mhz if value else None  # 0 is the file's word for "no cap"
