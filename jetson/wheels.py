"""Writes the wheels, dist/quamba_edge-*.whl: one for a workstation (x86_64), one for a board (aarch64); `make wheels`.

    python jetson/wheels.py [--out dist] [--machine x86_64 --machine aarch64]

Each holds the native CPU library of its machine, made by g++ or a cross-compiler, and the GPU kernels for an Orin, so that a board
needs no compiler.  The platform tag is read from the libraries that were made: manylinux_2_35 says "glibc 2.35 and the libstdc++
that came with it, or later", which is Ubuntu 22.04, the system of JetPack 6.  What needs more than that is refused.

The build runs in a copy of the sources, so that nothing left over in the tree gets into a wheel, and dates are those of the
last commit: the same commit and compilers give the same bytes.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MACHINES = ("x86_64", "aarch64")
LIBRARY = "libquamba_cpu.so"
SOURCES = ("LICENSE", "README.md", "pyproject.toml", "setup.py")

# Linux of each year as PEP 600 and auditwheel's policies have it: glibc 2.N, and the newest symbols of libstdc++ beside it.
# The last is Ubuntu 22.04; the tag must not be newer.
FLOORS = {
    17: {"GLIBCXX": (3, 4, 19), "CXXABI": (1, 3, 7), "GCC": (4, 8)},
    28: {"GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0)},
    31: {"GLIBCXX": (3, 4, 28), "CXXABI": (1, 3, 12), "GCC": (7, 0)},
    34: {"GLIBCXX": (3, 4, 29), "CXXABI": (1, 3, 13), "GCC": (11, 0)},
    35: {"GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13), "GCC": (12, 0)},
}
# What every such system has; a library that needs another one would not load.
ALLOWED = re.compile(r"(libc|libm|libpthread|libdl|librt|libgcc_s|libstdc\+\+|ld-linux-(x86-64|aarch64))\.so\.\d")


class Refused(Exception):
    """Why no wheel is written, and what to do."""


@dataclass(frozen=True)
class Elf:
    """What a shared library is for and needs, as readelf tells it."""

    machine: str  # "x86_64" or "aarch64"
    needs: tuple[str, ...]  # libraries
    versions: dict[str, tuple[int, ...]]  # newest symbol version of each family: {"GLIBC": (2, 17), ...}


def read_elf(path: Path) -> Elf:
    said = subprocess.run(
        ["readelf", "-h", "-d", "-V", "-W", str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    ).stdout
    named = re.search(r"Machine:\s+(.*)", said)
    machine = {"Advanced Micro Devices X86-64": "x86_64", "AArch64": "aarch64"}.get(
        named[1] if named else "", "unknown"
    )
    versions: dict[str, tuple[int, ...]] = {}
    for family, number in re.findall(r"Name: ([A-Z]+)_([\d.]+)\s", said):
        versions[family] = max(versions.get(family, ()), tuple(int(n) for n in number.split(".")))
    return Elf(machine, tuple(re.findall(r"\(NEEDED\).*\[(.*)\]", said)), versions)


def floor(elf: Elf) -> int:
    """N of the oldest manylinux_2_N that has everything the library needs; Refused when Ubuntu 22.04 has not."""
    newest = max(FLOORS)
    if strange := [name for name in elf.needs if not ALLOWED.fullmatch(name)]:
        raise Refused(f"{LIBRARY} needs {', '.join(strange)}, which a board need not have: link without it")
    for minor, has in FLOORS.items():
        if elf.versions.get("GLIBC", (2, 0)) <= (2, minor) and all(
            elf.versions.get(f, ()) <= v for f, v in has.items()
        ):
            return minor
    wanted = {"GLIBC": (2, newest), **FLOORS[newest]}
    over = [f"{f}_{'.'.join(map(str, v))}" for f, v in elf.versions.items() if v > wanted.get(f, v)]
    raise Refused(
        f"{LIBRARY} for {elf.machine} needs {', '.join(over)}, newer than Ubuntu 22.04 (JetPack 6) has: "
        "build with GCC 12 or older and glibc 2.35 or older, as Debian 12 and Ubuntu 22.04 have them"
    )


def compiler(machine: str) -> str:
    """The C++ compiler for `machine`; Refused with the command that installs it where it is missing."""
    mine = machine == platform.machine()
    name = os.environ.get("CXX", "g++") if mine else f"{machine}-linux-gnu-g++"
    if shutil.which(name) is None:
        package = "g++" if mine else f"g++-{machine.replace('_', '-')}-linux-gnu"
        raise Refused(f"{name} not found, it makes the {machine} library: apt install {package}")
    return name


def native(machine: str, work: Path) -> tuple[Path, int]:
    """The CPU library for `machine` and its floor."""
    subprocess.run(
        [
            "make",
            "-s",
            f"-j{os.cpu_count() or 1}",
            "-C",
            ROOT / "csrc",
            "cpu",
            f"OUT={work}",
            f"CXX={compiler(machine)}",
        ],
        check=True,
    )
    elf = read_elf(work / LIBRARY)
    if elf.machine != machine:
        raise Refused(f"{work / LIBRARY} is for {elf.machine}, expected {machine}: rm -r build, then again")
    return work / LIBRARY, floor(elf)


def cubins(work: Path) -> Path:
    """Folder of the kernels for an Orin's GPU.  Those that `make native` made are taken if they are of these sources."""
    made = ROOT / "quamba_edge" / "_native" / "sm_87"
    if made.is_dir():
        shutil.copytree(made, work / "sm_87", ignore=shutil.ignore_patterns("*.new"))
    ran = subprocess.run([sys.executable, ROOT / "csrc" / "cubins.py", work], capture_output=True, text=True)
    if ran.returncode:
        raise Refused((ran.stdout + ran.stderr).strip() or "csrc/cubins.py failed")
    listed = json.loads((work / "sm_87" / "cubins.json").read_text())["files"]
    for old in (work / "sm_87").glob("*.cubin"):  # of an op that has gone
        if old.stem not in listed:
            old.unlink()
    return work / "sm_87"


def stage(folder: Path, library: Path, kernels: Path) -> None:
    """Copy what a wheel is made of into `folder`, with modes that do not depend on who runs this."""
    skip = shutil.ignore_patterns("__pycache__", "_native", "*.egg-info")
    for name in SOURCES:
        shutil.copy2(ROOT / name, folder / name)
    shutil.copytree(ROOT / "quamba_edge", folder / "quamba_edge", ignore=skip)
    shutil.copytree(kernels, folder / "quamba_edge" / "_native" / "sm_87")
    shutil.copy2(library, folder / "quamba_edge" / "_native" / LIBRARY)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.name == LIBRARY else 0o644)


def dated() -> str:
    """Seconds since 1970 for everything inside: SOURCE_DATE_EPOCH, or the last commit, or the oldest that a zip can say."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return given
    ran = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True)
    return ran.stdout.strip() or "315532800"


def pack(machine: str, out: Path, work: Path, kernels: Path) -> Path:
    """Write the wheel for `machine` into `out`."""
    library, minor = native(machine, work / machine)
    tree = work / f"tree-{machine}"
    tree.mkdir()
    stage(tree, library, kernels)
    hook = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1], {'--build-option': sys.argv[2:]}))"
    environment = {**os.environ, "QUAMBA_SKIP_NATIVE": "1", "SOURCE_DATE_EPOCH": dated()}
    made = work / f"dist-{machine}"
    command = [sys.executable, "-c", hook, str(made), f"--plat-name=manylinux_2_{minor}_{machine}"]
    ran = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if ran.returncode:
        raise Refused(f"setuptools failed:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f"quamba_edge-*_{machine}.whl"):
        old.unlink()
    return Path(shutil.move(made / ran.stdout.split()[-1], out))


@contextmanager
def alone() -> Iterator[None]:
    """One build at a time: objects are shared with `make native`."""
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build" / ".wheels.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(machines: list[str], out: Path) -> list[Path]:
    """Write the wheels of `machines` into `out`, replacing older ones there."""
    for machine in machines:
        compiler(machine)  # before minutes of work for another
    with alone(), tempfile.TemporaryDirectory(prefix="wheels-", dir=ROOT / "build") as work:
        kernels = cubins(Path(work))
        return [pack(machine, out, Path(work), kernels) for machine in machines]


def main() -> int:
    parser = argparse.ArgumentParser(description="write the wheels")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--machine", action="append", choices=MACHINES, help="default: both")
    given = parser.parse_args()
    try:
        for wheel in build(given.machine or list(MACHINES), given.out):
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            print(f"{wheel}  {wheel.stat().st_size / 1e6:.2f} MB  sha256 {digest}")
    except Refused as e:
        print(e, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError:  # the compiler has said what
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
