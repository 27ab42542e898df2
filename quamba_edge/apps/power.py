"""`quamba-edge power show|advise`: power modes by name, and which to take for what.  Reads only; power_sweep.py measures.

Numbers of modes differ between boards, so a mode is a name here, and its number only in the command that switches to it.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quamba_edge import devices
from quamba_edge.apps.top import identity
from quamba_edge.errors import BadUsage, Missing
from quamba_edge.telemetry import nvpmodel
from quamba_edge.telemetry.files import Tree

GOALS = ("speed", "efficiency", "heat")


@dataclass(frozen=True)
class State:
    """Modes of a board.  Each row of `modes` has id, name, caps in MHz and the memory bandwidth they allow, None if unknown."""

    machine: str | None
    board: str | None
    current: str | None
    default: str | None
    modes: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Advice:
    """`command` is None when the board is in that mode already; `measured` says whether a sweep decided, or published figures."""

    goal: str
    mode: str
    current: str | None
    command: str | None
    reason: str
    measured: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def show(root: Path = Path("/")) -> State:
    """What modes there are and which is on, without root.  Missing on a machine that has none."""
    modes, known = modes_of(root), identity(root)
    board = next((b for b in devices.BOARDS if b.name == known["board"]), None)
    rows = []
    for mode in modes.modes:
        caps = _caps(mode, board)
        emc = caps["emc_max_mhz"]
        gbps = (
            round(devices.PowerMode(mode.name, 0, 0, 0, emc).bandwidth_gbps, 1)
            if emc and board and board.modes
            else None
        )
        rows.append(
            {"id": mode.id, "name": mode.name, **caps, "bandwidth_gbps": gbps, "current": mode.name == modes.current}
        )
    return State(known["machine"], known["board"], modes.current, modes.default, tuple(rows))


def advise(goal: str, root: Path = Path("/"), sweep: Path | None = None) -> Advice:
    """The mode for a goal: by this board's own sweep where there is one, else by its clocks and what others published."""
    if goal not in GOALS:
        raise BadUsage(f"--for {goal}: expected one of {', '.join(GOALS)}")
    state = show(root)
    chosen, reason = _by_sweep(goal, state, sweep) if sweep else _by_clocks(goal, state)
    mode = next(m for m in state.modes if m["name"] == chosen)
    command = f"sudo nvpmodel -m {mode['id']}" if chosen != state.current else None
    return Advice(goal, chosen, state.current, command, reason, sweep is not None)


def modes_of(root: Path) -> nvpmodel.Modes:
    """The board's modes, at least one.  Missing where there are none."""
    modes = nvpmodel.read(Tree(root))
    if not modes.modes:
        raise Missing(
            f"{root.as_posix().rstrip('/')}{nvpmodel.CONF} tells of no power modes: only Jetsons have them; "
            "what this machine draws is in `quamba-edge top`"
        )
    return modes


def _caps(mode: nvpmodel.Mode, board: devices.Board | None) -> dict[str, float | None]:
    """The board's own file first; what NVIDIA publishes of a mode of that name where the file is silent."""
    facts = devices.mode_facts(board, mode.name)
    return {
        "cpu_max_mhz": mode.cpu_max_mhz or (facts.cpu_mhz if facts else None),
        "gpu_max_mhz": mode.gpu_max_mhz or (facts.gpu_mhz if facts else None),
        "emc_max_mhz": mode.emc_max_mhz or (facts.emc_mhz if facts else None),
    }


def _by_clocks(goal: str, state: State) -> tuple[str, str]:
    known = [m for m in state.modes if m["emc_max_mhz"] and m["gpu_max_mhz"]]
    if goal == "heat" or not known:
        coolest = min(state.modes, key=lambda m: _watts(m["name"]))
        if goal != "heat":
            coolest = max(state.modes, key=lambda m: _watts(m["name"]))
        return coolest[
            "name"
        ], "by the watts in its name; its clocks are not known here. Measure: quamba-edge power sweep"
    fastest = max(m["emc_max_mhz"] for m in known)
    able = sorted((m for m in known if m["emc_max_mhz"] == fastest), key=lambda m: m["gpu_max_mhz"])
    if goal == "speed":
        return able[-1]["name"], (
            f"memory at {fastest:.0f} MHz and the fastest GPU, {able[-1]['gpu_max_mhz']:.0f} MHz. Decoding is bound by memory, so "
            f"{able[0]['name']} comes close; without a power limit, over-current throttling is likely: watch `quamba-edge top`"
            if len(able) > 1
            else f"memory at {fastest:.0f} MHz, which is what decoding is bound by"
        )
    published = (
        ". On an Orin Nano Super others measured 3-26 % more tokens a joule in 25W than in 15W and 8-35 % more than in MAXN_SUPER "
        "(llama.cpp, 8 models, smolhub.com)"
    )
    reason = f"memory at {fastest:.0f} MHz, which is what decoding is bound by, with the slowest GPU that has it"
    return able[0]["name"], reason + (published if able[0]["name"] == "25W" else "")


def _by_sweep(goal: str, state: State, path: Path) -> tuple[str, str]:
    key, sign, unit = {
        "speed": ("decode_tps", -1, "tokens/s"),
        "efficiency": ("decode_j_per_token", 1, "J/token"),
        "heat": ("decode_w", 1, "W"),
    }[goal]
    try:
        rows = json.loads(path.read_text().splitlines()[-1])["rows"]
        known = [
            r
            for r in rows
            if isinstance(r.get(key), (int, float)) and any(m["name"] == r.get("mode") for m in state.modes)
        ]
    except (ValueError, IndexError, KeyError, TypeError, AttributeError):
        raise BadUsage(f"{path} is no result of `quamba-edge power sweep BUNDLE --yes --json`") from None
    if not known:
        raise BadUsage(f"{path} has no {key} for a mode of this board: sweep again, on this board")
    ordered = sorted(known, key=lambda r: sign * r[key])
    listed = ", ".join(f"{r['mode']} {r[key]:.3g}" for r in ordered)
    return ordered[0]["mode"], f"measured, in {unit}: {listed}"


def _watts(name: str) -> float:
    found = re.match(r"([0-9]+)W", name)
    return float(found[1]) if found else float("inf")


def show_text(state: State) -> str:
    """A table; * is the present mode."""
    lines = [
        f"{state.machine or 'this board'}: {state.current or 'mode not told'} (default {state.default or 'not told'})"
    ]
    for m in state.modes:
        caps = (
            ("cpu", "cpu_max_mhz", "MHz"),
            ("gpu", "gpu_max_mhz", "MHz"),
            ("memory", "emc_max_mhz", "MHz"),
            ("", "bandwidth_gbps", "GB/s"),
        )
        told = "  ".join(f"{n} {m[k]:.0f} {u}".strip() for n, k, u in caps if m[k] is not None)
        lines.append(
            f"{'*' if m['current'] else ' '} {m['name']:12}{told or 'clocks not told'}".rstrip()
            + f"   sudo nvpmodel -m {m['id']}"
        )
    return "\n".join(lines)


def advise_text(advice: Advice) -> str:
    action = advice.command or "already on"
    return f"{advice.goal}: {advice.mode} ({action})\n{advice.reason}"
