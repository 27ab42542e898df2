"""What `quamba-edge doctor` finds out about the machine itself: driver, kernels, power sensor, memory and disk.

Everything is read from files below a root, so that a recorded tree of another machine can be examined; only the driver and the native
library of the running machine are asked themselves.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path

from quamba_edge import devices, telemetry
from quamba_edge.apps import jetson
from quamba_edge.doctor import Finding
from quamba_edge.telemetry import linux
from quamba_edge.telemetry.files import Tree
from quamba_edge.telemetry.tegra import is_tegra

NATIVE = Path(__file__).resolve().parents[1] / "_native"
SPARE_BYTES = 400 << 20  # left for the system beside a bundle: below it, Linux on a Jetson ends processes or hangs
LIBCUDA = "libcuda.so.1"


def examine(root: Path = Path("/"), bundle: Path | None = None) -> list[Finding]:
    """Findings in the order in which one would look.  With a bundle, BadBundle and its kinds if it is none."""
    tree, here = Tree(root), root == Path("/")
    board = is_tegra(tree)
    findings = jetson.examine(root) if board else []
    findings += [_driver(tree, here), *_kernels(tree, here)]
    if board and here:
        findings += jetson.packages()
    memory = [_memory(tree, bundle), *_ended(tree), *_swap(tree)]
    return [*findings, _power(root), *memory, *_storage(tree, bundle, here)]


def _driver(tree: Tree, here: bool) -> Finding:
    tegra = is_tegra(tree)
    fix = (
        "sudo apt install --reinstall nvidia-l4t-cuda"
        if tegra
        else "only with an NVIDIA GPU: sudo ubuntu-drivers install"
    )
    if not here:
        places = [*tree.glob(f"/usr/lib/*/*/{LIBCUDA}"), *tree.glob(f"/usr/lib/*/{LIBCUDA}")]
        if places:
            return Finding("libcuda", "ok", places[0])
        return Finding("libcuda", "absent", f"no {LIBCUDA}; the cuda backend needs it", fix)
    version = driver_version()
    if version is None:
        return Finding("libcuda", "absent", f"no {LIBCUDA} can be loaded; the cuda backend needs it", fix)
    maps = tree.text("/proc/self/maps") or ""
    path = next(iter(re.findall(r"(/\S*libcuda\.so\S*)", maps)), LIBCUDA)
    return Finding("libcuda", "ok", f"CUDA {version[0]}.{version[1]}, {path}")


def driver_version() -> tuple[int, int] | None:
    """CUDA version of this machine's driver, such as (12, 6)."""
    number = ctypes.c_int(0)
    try:
        library = ctypes.CDLL(LIBCUDA)
        failed = library.cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return None if failed or not number.value else (number.value // 1000, number.value % 1000 // 10)


def _kernels(tree: Tree, here: bool) -> Iterator[Finding]:
    """Native code for the CPU as it is built and really usable here, and for the GPU as its driver will take it."""
    try:
        from quamba_edge.backends import cpu, cubin
    except ImportError:  # no numpy: told elsewhere
        return
    if here:
        reason = cpu.why_not()
        sets = [] if reason else cpu.instruction_sets()
        more = f" (also {', '.join(sets[1:])})" if sets[1:] else ""
        yield (
            Finding("cpu kernels", "absent", reason, "make native")
            if reason
            else Finding("cpu kernels", "ok", sets[0] + more)
        )
    if not is_tegra(tree) and driver_version() is None:
        return
    files = sorted(NATIVE.glob("sm_*/*.cubin"))
    if not files:
        yield Finding("gpu kernels", "absent", "kernels for the GPU are not built", "make native")
        return
    version = driver_version() if here else jetson.cuda_of(jetson.l4t(tree.text("/etc/nv_tegra_release") or "") or "")
    board = devices.find(tree.text("/proc/device-tree/compatible") or "")
    mine = [f for f in files if board is None or f.parent.name == f"sm_{board.sm}"]
    for path in mine:
        if version is None:
            break
        try:
            reason = cubin.refused(cubin.read(path), version, board.sm if board else None)
        except (OSError, ValueError) as e:
            reason = str(e)
        if reason:
            yield Finding("gpu kernels", "absent", f"{path.parent.name}/{path.name}: {reason}", "make native")
            return
    found = (
        f"{len(mine)} files that CUDA {version[0]}.{version[1]} takes"
        if version
        else f"{len(mine)} files; no driver to ask"
    )
    yield Finding("gpu kernels", "ok" if mine and version else "absent", found)


def _power(root: Path) -> Finding:
    source = telemetry.best(root)
    try:
        sample = source.read()
    finally:
        source.close()
    if sample.power_of:
        return Finding("power sensor", "ok", f"{sample.power_of}, read by {sample.source}")
    tree = Tree(root)
    if tree.glob(f"{linux.POWERCAP}/*-rapl:[0-9]*/energy_uj"):
        fix = "sudo chmod a+r /sys/class/powercap/*/energy_uj (until the next boot)"
        return Finding("power sensor", "absent", "the processor's energy counters are root's; energy needs them", fix)
    return Finding(
        "power sensor", "absent", "this machine tells none (virtual machines do not); energy figures need one"
    )


def _memory(tree: Tree, bundle: Path | None) -> Finding:
    free = linux.memory(tree)["ram_available_bytes"]
    if free is None:
        return Finding("memory", "warn", "/proc/meminfo does not say how much is free")
    if bundle is None:
        return Finding(
            "memory", "ok", f"{free / 1e9:.2f} GB available; with --bundle FILE, whether that is enough for it"
        )
    need = bundle_bytes(bundle)
    told = f"{bundle.name} needs {need / 1e9:.2f} GB and {SPARE_BYTES / 1e9:.2f} beside it, {free / 1e9:.2f} GB are available"
    if need + SPARE_BYTES <= free:
        return Finding("memory", "ok", told)
    fix = "a smaller recipe, or: sudo sysctl vm.drop_caches=3"
    if is_tegra(tree):
        fix += ", and without a desktop: sudo systemctl set-default multi-user.target && sudo reboot"
    return Finding("memory", "missing", told, fix)


def bundle_bytes(path: Path) -> int:
    """Memory of a bundle at work: the file, one sequence's state in f16, and the activations.  Reads the header only."""
    from quamba_edge import models
    from quamba_edge.bundle.reader import Bundle
    from quamba_edge.runtime.engine import CHUNKS
    from quamba_edge.runtime.plan import arena_sizes
    from quamba_edge.runtime.state import state_bytes

    with Bundle.open(path, verify=False) as bundle:
        part = models.find(bundle.manifest.family, "program")
        programs = [part.program(bundle.manifest, 1, tokens, "last") for tokens in CHUNKS]
    activations = sum(arena_sizes(programs).values())
    return path.stat().st_size + state_bytes(programs[0].states, 1, "f16") + activations


def _ended(tree: Tree) -> Iterator[Finding]:
    """Processes that Linux has killed because memory ran out: what looks like a crash without a word."""
    if found := re.search(r"^oom_kill ([1-9][0-9]{0,9})$", tree.text("/proc/vmstat") or "", re.MULTILINE):
        told = f"processes that were killed since boot because there was none left: {found[1]}"
        yield Finding("out of memory", "warn", told, "which: sudo dmesg | grep -i 'killed process'")


def _swap(tree: Tree) -> Iterator[Finding]:
    areas = [row.split() for row in (tree.text("/proc/swaps") or "").splitlines()[1:]]
    sizes = {row[0]: 1024 * int(row[2]) for row in areas if len(row) >= 3 and row[2].isdecimal()}
    packed = sum(size for name, size in sizes.items() if "zram" in name)
    disk = sum(sizes.values()) - packed
    if is_tegra(tree) and packed:
        fix = (
            "sudo systemctl disable --now nvzramconfig && sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile && "
            "sudo mkswap /swapfile && sudo swapon /swapfile"
        )
        found = f"{packed / 1e9:.1f} GB of zram, which keeps swapped pages in the memory that the model needs"
        yield Finding(
            "swap", "warn" if not disk else "ok", found + (f", and {disk / 1e9:.1f} GB on disk" if disk else ""), fix
        )
    else:
        yield Finding("swap", "ok", f"{disk / 1e9:.1f} GB on disk, {packed / 1e9:.1f} GB of zram" if sizes else "none")


def _storage(tree: Tree, bundle: Path | None, here: bool) -> Iterator[Finding]:
    place = (bundle if bundle and here else Path.cwd() if here else Path("/")).absolute()
    device, kind = mounted(tree.text("/proc/mounts") or "", str(place.resolve() if here else place))
    if not device:
        return
    if device == "/dev/root" and here:
        number = os.stat("/").st_dev
        link = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
        device = f"/dev/{Path(os.path.realpath(link)).name}" if os.path.exists(link) else device
    disk = re.sub(r"p?[0-9]+$", "", device.rsplit("/", 1)[-1])
    found = f"{device} ({kind}) under {place}"
    if disk.startswith("mmcblk"):
        move = "copy the bundle to an NVMe drive, and run it from there: cp BUNDLE /mnt/nvme/"
        yield Finding("storage", "warn", f"{found}: SD cards and eMMC load slowly", move)
    elif kind in ("nfs", "nfs4", "cifs", "9p", "fuse.sshfs"):
        yield Finding(
            "storage", "warn", f"{found}: a bundle is mapped, and this goes over a network", "cp BUNDLE to a local disk"
        )
    elif tree.integer(f"/sys/block/{disk}/queue/rotational") == 1 and disk.startswith("sd"):
        yield Finding(
            "storage", "warn", f"{found}: a rotating disk loads slowly", "copy the bundle to a solid-state drive"
        )
    else:
        yield Finding("storage", "ok", found)


def mounted(mounts: str, path: str) -> tuple[str | None, str | None]:
    """(device, file system) that a path lies on, by /proc/mounts; the innermost and latest mount wins."""
    best: tuple[str | None, str | None] = (None, None)
    length = 0
    for row in mounts.splitlines():
        fields = row.split()
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ").rstrip("/")
        if (path == point or path.startswith(f"{point}/")) and len(point) + 1 >= length:
            best, length = (fields[0], fields[2]), len(point) + 1
    return best
