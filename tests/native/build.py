"""Compiles the native tests with csrc/Makefile, and says what is missing where that cannot be done."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"
CROSS, EMULATOR, SYSROOT = "aarch64-linux-gnu-g++", "qemu-aarch64-static", "/usr/aarch64-linux-gnu"

# Flags of /proc/cpuinfo that a set's instructions need: asked of the system, not of the library that is tested.
NEEDS = {
    "avx512": "avx512f avx512bw avx512vl avx512dq avx512_vnni",
    "avxvnni": "avx2 fma f16c bmi2 avx_vnni",
    "avx2": "avx2 fma f16c bmi2",
    "neon": "asimddp asimdhp",
    "plain": "",
}
SETS = {"x86_64": ["avx512", "avxvnni", "avx2", "plain"], "aarch64": ["neon", "plain"]}


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def why_not() -> str | None:
    """Why nothing can be compiled for this machine, or None."""
    missing = [program for program in (compiler(), "make") if shutil.which(program) is None]
    if platform.machine() not in SETS:
        return f"no kernels for {platform.machine()}"
    return f"{' and '.join(missing)} not found (apt install g++ make)" if missing else None


def why_not_arm64() -> str | None:
    """Why nothing can be compiled for aarch64 and run here, or None."""
    packages = {CROSS: "g++-aarch64-linux-gnu", EMULATOR: "qemu-user-static", "make": "make"}
    missing = [package for program, package in packages.items() if shutil.which(program) is None]
    return f"missing: apt install {' '.join(missing)}" if missing else None


def runs_here(instruction_set: str) -> bool:
    """Whether this machine has a set's instructions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), ":")
    return set(NEEDS[instruction_set].split()) <= set(flags.partition(":")[2].split())


def make(target: str, out: Path, cxx: str) -> None:
    """`make target OUT=out`; what the compiler said is the error where it fails."""
    command = ["make", "-s", "-C", str(CSRC), f"-j{os.cpu_count()}", target, f"OUT={out}", f"CXX={cxx}"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-4000:]
