"""`quamba-edge top`: power, load, clocks, heat and memory of this machine, live.

Plain ANSI, because a board has no rich.  The picture is drawn on the terminal's other screen, so that Ctrl-C leaves everything as it
was; into a file or a pipe it is one line a sample.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from quamba_edge import devices, telemetry
from quamba_edge.errors import BadUsage
from quamba_edge.telemetry.files import Tree
from quamba_edge.telemetry.sample import Sample, Source

FIRST_LOOK_S = 0.6  # the load of a CPU is a mean between two looks, and sources look at it twice a second
OTHER_SCREEN, SAME_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
HOME, REST_OF_LINE, REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
BAR = 24  # characters


def once(root: Path = Path("/"), source: str = "auto") -> Sample:
    """One sample, after a first look for those values that need two."""
    with _opened(source, root) as reader:
        reader.read()
        time.sleep(FIRST_LOOK_S)
        return reader.read()


def identity(root: Path) -> dict[str, Any]:
    """{"machine": as its maker calls it, "board": ours (devices.py)}; None for what is not known."""
    tree = Tree(root)
    board = devices.find(tree.text("/proc/device-tree/compatible") or "")
    named = tree.text("/proc/device-tree/model") or tree.text("/sys/devices/virtual/dmi/id/product_name")
    return {"machine": named or None, "board": board.name if board else None}


def watch(
    root: Path = Path("/"),
    source: str = "auto",
    *,
    hz: float = 2.0,
    as_json: bool = False,
    stream: TextIO | None = None,
) -> Sample:
    """Show samples until Ctrl-C (which is how one leaves, so it is no error); the last one.  hz: 0.1 to 20 pictures a second."""
    if not 0.1 <= hz <= 20:
        raise BadUsage(f"{hz} pictures a second: expected 0.1 to 20")
    out = stream or sys.stdout
    known = identity(root)
    with _opened(source, root) as reader, hung_up_is_interrupted():
        terminal = out.isatty() and not as_json
        try:
            if terminal:
                out.write(OTHER_SCREEN)
            while True:
                sample = reader.read()
                if as_json:
                    out.write(json.dumps({**known, **sample.to_json()}) + "\n")
                elif terminal:
                    out.write(_fitted(picture(sample, known), out))
                else:
                    out.write(line(sample) + "\n")
                out.flush()
                time.sleep(1 / hz)
        except KeyboardInterrupt:
            return reader.read()
        finally:
            if terminal:
                out.write(SAME_SCREEN)
                out.flush()


def picture(s: Sample, known: Mapping[str, Any]) -> str:
    """The whole state in some 15 lines; what the machine does not tell is a dash."""
    title = known.get("machine") or "this machine"
    rows = [f"{title}  [{s.source}{', mode ' + s.power_mode if s.power_mode else ''}]", ""]
    rows.append(_row("power", _text(s.power_w, "W", 2), s.power_of or ""))
    for name, rail in s.rails.items():
        if name != s.power_of:
            rows.append(_row("", _text(rail.power_w, "W", 2), f"{name}, in the above" if s.power_of else name))
    rows.append(_row("gpu", _text(s.gpu_load_pct, "%"), _bar(s.gpu_load_pct), _clock(s.gpu_mhz, s.gpu_max_mhz)))
    clocks = "/".join(f"{mhz:.0f}" for mhz in s.cpu_mhz[:4])
    rows.append(_row("cpu", _text(s.cpu_load_pct, "%"), _bar(s.cpu_load_pct), f"{clocks} MHz" if clocks else ""))
    if any(x is not None for x in s.cpu_loads_pct):
        rows.append(_row("", "", " ".join("off" if x is None else f"{x:.0f}%" for x in s.cpu_loads_pct)))
    rows.append(
        _row("memory clock", _text(s.emc_load_pct, "%"), _bar(s.emc_load_pct), _clock(s.emc_mhz, s.emc_max_mhz))
    )
    used = 100 * s.ram_used_bytes / s.ram_total_bytes if s.ram_used_bytes is not None and s.ram_total_bytes else None
    rows.append(_row("memory", _text(used, "%"), _bar(used), f"{_gb(s.ram_used_bytes)} of {_gb(s.ram_total_bytes)}"))
    if s.nvmap_used_bytes is not None:
        rows.append(_row("", "", f"{_gb(s.nvmap_used_bytes)} of it for the GPU (NvMap)"))
    if s.gpu_memory_total_bytes is not None:
        rows.append(_row("gpu memory", "", f"{_gb(s.gpu_memory_used_bytes)} of {_gb(s.gpu_memory_total_bytes)}"))
    rows.append(_row("swap", "", f"{_gb(s.swap_used_bytes)} of {_gb(s.swap_total_bytes)}"))
    rows.append(
        _row("heat", "", "  ".join(f"{n} {t:.1f}" for n, t in s.temps_c.items()) + (" C" if s.temps_c else "-"))
    )
    fan = (_text(s.fan_pct, "%"), f"{s.fan_rpm} rpm" if s.fan_rpm is not None else "")
    rows.append(_row("fan", *fan))
    events = "  ".join(f"{name} {count}" for name, count in s.over_current_events.items())
    rows.append(_row("over-current", "", f"{events} since boot" if events else "-"))
    return "\n".join(rows) + "\n"


def line(sample: Sample) -> str:
    """The most wanted values in one line."""
    hottest = max(sample.temps_c.values(), default=None)
    parts = [
        f"{_text(sample.power_w, 'W', 2)}",
        f"gpu {_text(sample.gpu_load_pct, '%')} {_clock(sample.gpu_mhz, None)}".rstrip(),
        f"cpu {_text(sample.cpu_load_pct, '%')}",
        f"memory {_gb(sample.ram_used_bytes)} of {_gb(sample.ram_total_bytes)}",
        f"hottest {_text(hottest, 'C', 1)}",
        f"mode {sample.power_mode or '-'}",
    ]
    return "  ".join(parts)


@contextmanager
def _opened(name: str, root: Path) -> Iterator[Source]:
    if not root.is_dir():
        raise BadUsage(f"--root {root} is no folder: expected one that holds sys/, proc/ and etc/")
    source = telemetry.open_source(name, root)
    try:
        yield source
    finally:
        source.close()


@contextmanager
def hung_up_is_interrupted() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP (a lost ssh) are Ctrl-C: what was changed must be put back then too."""
    if threading.current_thread() is not threading.main_thread():  # only that one may say so
        yield
        return
    before = {s: signal.signal(s, signal.default_int_handler) for s in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fitted(text: str, stream: TextIO) -> str:
    """The picture at the top of the terminal, cut to its size: a line that wraps would push the others out."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except OSError:
        size = os.terminal_size((0, 0))
    columns, lines = size.columns or 80, size.lines or 24  # a serial console says 0
    rows = [r[: columns - 1] for r in text.splitlines()[: lines - 1]]
    return HOME + "".join(f"{r}{REST_OF_LINE}\r\n" for r in rows) + REST_OF_SCREEN


def _row(name: str, value: str, *more: str) -> str:
    return f"{name:14}{value:>9}  {'  '.join(m for m in more if m)}".rstrip()


def _text(value: float | None, unit: str, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f} {unit}"


def _bar(share: float | None) -> str:
    full = round(BAR * min(max(share or 0.0, 0.0), 100.0) / 100)
    return f"[{'#' * full}{'.' * (BAR - full)}]" if share is not None else ""


def _clock(mhz: float | None, most: float | None) -> str:
    now = f"{mhz:.0f} MHz" if mhz is not None else ""
    cap = f"at most {most:.0f} MHz" if most is not None else ""
    return ", ".join(x for x in (now, cap) if x)


def _gb(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e9:.2f} GB"
