"""What `quamba-edge doctor` knows of Jetsons: their releases with known traps, modes, clocks, supply and CUDA.

Release numbers, traps and remedies are NVIDIA's release notes and other people's boards: nothing here was tried on one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from quamba_edge import devices
from quamba_edge.apps import power
from quamba_edge.doctor import Finding
from quamba_edge.errors import QuambaError
from quamba_edge.telemetry import nvpmodel
from quamba_edge.telemetry.files import Tree
from quamba_edge.telemetry.sample import Sample
from quamba_edge.telemetry.tegra import Tegra

# L4T release to JetPack; a name ends in "." where it stands for all that begin so.
JETPACKS = (
    ("35.", "5.1"),
    ("36.3", "6.0"),
    ("36.4.0", "6.1"),
    ("36.4.3", "6.2"),
    ("36.4.4", "6.2.1"),
    ("36.4.7", "6.2.1"),
    ("36.5.0", "6.2.2"),
    ("36.5.2", "6.2.3"),
    ("38.", "7.0 or 7.1"),
    ("39.2.0", "7.2"),
    ("39.2.1", "7.2.1"),
    ("39.2.2", "7.2.2"),
)
TO_36_5 = "sudo sed -i 's/r36\\.4/r36.5/' /etc/apt/sources.list.d/nvidia-l4t-apt-source.list && sudo apt update && sudo apt dist-upgrade"
FLASH = "install JetPack 7.2 or later (developer.nvidia.com/embedded/jetpack), or 6.2.2"
# What every program opens that uses the GPU; of the others some are root's alone.
GPU_NODES = ("dev/nvmap", "dev/nvhost-ctrl-gpu", "dev/nvgpu/*/ctrl", "dev/dri/renderD*")
THROTTLES_C, WARM_C = 99.0, 90.0  # tj above the first is slowed down, and says so nowhere
TRAPS = (
    ("35.", "its CUDA 11.4 and Python 3.8 are too old for these kernels and this package", FLASH),
    ("36.3", "its CUDA 12.2 does not take kernels built with CUDA 12.6", TO_36_5.replace("r36\\.4", "r36\\.3")),
    ("36.4.7", "one allocation of about 4 GB fails although memory is free (NvMap, corrected in 36.5)", TO_36_5),
    ("38.", "JetPack 7.0 and 7.1 do not support Orin", FLASH),
)


def examine(root: Path) -> list[Finding]:
    """A board's own findings, read from the files below `root`."""
    tree, sample = Tree(root), Tegra(root).read()
    return [_jetpack(tree), _board(tree), *_modes(root), _gpu_clock(tree, sample), *_supply(sample), *_heat(sample)]


def packages() -> list[Finding]:
    """What the running Jetson has for the GPU and for jetson-stats."""
    cuda = cuda_of(l4t(Tree(Path("/")).text("/etc/nv_tegra_release") or "") or "")
    return [
        *gpu_access(Path("/")),
        _python_package(
            "pycuda", "the cuda backend", "the kit's setup.sh once more, or: pip install 'pycuda>=2025.1.2'"
        ),
        _nvcc(cuda),
        _python_package("jtop", "the telemetry source jtop", "the kit's setup.sh --with-jetson-stats"),
    ]


def gpu_access(root: Path) -> Iterator[Finding]:
    """Whether this user may open the device files that CUDA opens; without them cuInit fails with 801 or 999."""
    nodes = [p for pattern in GPU_NODES for p in sorted(root.glob(pattern)) if not p.is_dir()]
    shut = [p for p in nodes if not os.access(p, os.R_OK)]
    if shut:
        fix = "sudo usermod -aG video,render $USER, then log in again"
        yield Finding("gpu access", "absent", f"this user may not open {shut[0]}; the cuda backend needs it", fix)
    elif nodes:
        yield Finding("gpu access", "ok", f"{len(nodes)} device files can be opened")


def l4t(text: str) -> str | None:
    """ "36.4.7" from the first line of /etc/nv_tegra_release."""
    found = re.search(r"# R([0-9]{1,3}) \(release\), REVISION: ([0-9]{1,3}(?:\.[0-9]{1,3})?)\b", text)
    return f"{found[1]}.{found[2]}" if found else None


def _jetpack(tree: Tree) -> Finding:
    release = l4t(tree.text("/etc/nv_tegra_release") or "")
    if release is None:
        return Finding("jetpack", "warn", "/etc/nv_tegra_release does not say which", "cat /etc/nv_tegra_release")
    name = next((jetpack for start, jetpack in JETPACKS if _is(release, start)), None)
    found = f"L4T {release}, " + (f"JetPack {name}" if name else "a JetPack that this version does not know")
    for start, trap, fix in TRAPS:
        if _is(release, start):
            return Finding("jetpack", "warn", f"{found}: {trap}", fix)
    return Finding("jetpack", "ok", found)


def _is(release: str, start: str) -> bool:
    return release.startswith(start) if start.endswith(".") else f"{release}.".startswith(f"{start}.")


def _board(tree: Tree) -> Finding:
    board = devices.find(tree.text("/proc/device-tree/compatible") or "")
    model = tree.text("/proc/device-tree/model") or "a board without a name"
    return Finding(
        "board", "ok", model + (f" ({board.name}, sm_{board.sm})" if board else ", which this version does not know")
    )


def _modes(root: Path) -> Iterator[Finding]:
    try:
        state, advice = power.show(root), power.advise("efficiency", root)
    except QuambaError as e:
        yield Finding("power mode", "absent", str(e), "sudo nvpmodel -q")
        return
    if state.current is None:
        yield Finding("power mode", "warn", f"{nvpmodel.STATUS} does not say which is on", "sudo nvpmodel -q")
    elif state.current == "MAXN_SUPER":
        found = f"MAXN_SUPER, which has no power limit: over-current throttling is likely; {advice.mode} gives more tokens a joule"
        yield Finding("power mode", "ok", found, advice.command)
    elif advice.command:
        yield Finding(
            "power mode", "warn", f"{state.current}; {advice.mode} is better: {advice.reason}", advice.command
        )
    else:
        yield Finding("power mode", "ok", f"{state.current}, as advised")


def _gpu_clock(tree: Tree, sample: Sample) -> Finding:
    modes = nvpmodel.read(tree)
    mode = modes.named(modes.current or "")
    most, cap = sample.gpu_max_mhz, mode.gpu_max_mhz if mode else None
    if most is None:
        return Finding(
            "gpu clock", "absent", "the kernel tells none (no devfreq folder of a GPU)", "sudo jetson_clocks --show"
        )
    if mode and cap and most < 0.9 * cap:
        fix = f"sudo nvpmodel -m {mode.id} && sudo reboot; if it stays so, flash the board again"
        return Finding("gpu clock", "warn", f"held at {most:.0f} MHz, {mode.name} allows {cap:.0f}", fix)
    least = next((hz for p in tree.glob("/sys/class/devfreq/*g*/min_freq") if (hz := tree.integer(p)) is not None), 0)
    if least / 1e6 >= most:
        return Finding("gpu clock", "ok", f"locked at {most:.0f} MHz")
    return Finding(
        "gpu clock",
        "ok",
        f"up to {most:.0f} MHz, following the load; to lock clocks for a benchmark: sudo jetson_clocks",
    )


def _supply(sample: Sample) -> Iterator[Finding]:
    counts = sample.over_current_events
    if counts.get("oc1") or counts.get("oc2"):
        told = f"{counts.get('oc1', 0)} under-voltage and {counts.get('oc2', 0)} over-current events since boot"
        yield Finding(
            "power supply",
            "warn",
            told,
            "take the supply that came with the board, or a lower mode: quamba-edge power show",
        )
    elif counts:
        peaks = f" ({counts['oc3']} short peaks, which are normal)" if counts.get("oc3") else ""
        yield Finding("power supply", "ok", f"no under-voltage since boot{peaks}")


def _heat(sample: Sample) -> Iterator[Finding]:
    hottest = max(sample.temps_c.items(), key=lambda zone: zone[1], default=None)
    if hottest is None:
        return
    told = f"{hottest[1]:.0f} C at most ({hottest[0]}); clocks fall at {THROTTLES_C:.0f} C"
    fix = "more air, sudo jetson_clocks --fan, or a lower mode: quamba-edge power advise --for heat"
    yield Finding("heat", "warn", told, fix) if hottest[1] >= WARM_C else Finding("heat", "ok", told)


def cuda_of(release: str) -> tuple[int, int] | None:
    """CUDA version of the driver that comes with an L4T release."""
    known = (("35.", (11, 4)), ("36.3", (12, 2)), ("36.", (12, 6)), ("38.", (13, 0)), ("39.", (13, 2)))
    return next((cuda for start, cuda in known if _is(release, start)), None)


def _python_package(name: str, use: str, fix: str) -> Finding:
    try:
        found = find_spec(name) is not None
    except (ValueError, ImportError):
        found = False
    return Finding(name, "ok", "installed") if found else Finding(name, "absent", f"not installed; {use} needs it", fix)


def _nvcc(cuda: tuple[int, int] | None) -> Finding:
    """pip finds CUDA's headers for pycuda by where nvcc is, which JetPack does not put on the path."""
    if on_path := shutil.which("nvcc"):
        return Finding("nvcc", "ok", on_path)
    if Path("/usr/local/cuda/bin/nvcc").exists():
        fix = "export PATH=/usr/local/cuda/bin:$PATH CPATH=/usr/local/cuda/include LIBRARY_PATH=/usr/local/cuda/lib64/stubs"
        return Finding("nvcc", "absent", "in /usr/local/cuda/bin, not on the path; building pycuda needs it", fix)
    fix = "sudo apt install cuda-toolkit-{}-{}".format(*(cuda or (12, 6)))
    return Finding("nvcc", "absent", "not installed; building pycuda needs CUDA's headers", fix)
