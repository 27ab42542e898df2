"""Makes an arm64 Debian with Python and nothing else, and runs commands in copies of it under emulation.

    python -m tests.arm64root.root          makes build/arm64-root/base once (minutes), or says what this machine lacks

Debian 12 is the nearest to JetPack 6 (Ubuntu 22.04: glibc 2.35, Python 3.10) and 7 (24.04: 2.39, 3.12) that Debian's own mirrors
carry: glibc 2.36, Python 3.11.  What an older glibc lacks is checked on the wheel itself (tests/packaging).
"""

from __future__ import annotations

import fcntl
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.arm64root import namespace

REPO = Path(__file__).resolve().parents[2]
FOLDER = REPO / "build" / "arm64-root"
BASE, STAMP = FOLDER / "base", FOLDER / "base.txt"
SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
# Python, and the C++ library that comes with apt on every board: numpy needs it, and so does our library.
PACKAGES = ("python3", "python3-venv", "libstdc++6")
# What a board's Debian has too, but nobody reads here: half of the files.
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
NEEDS = {
    "mmdebstrap": "mmdebstrap",
    namespace.EMULATOR: "qemu-user-static",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
}


def why_not() -> str | None:
    """Why no arm64 root can be made and entered here, or None."""
    missing = [package for program, package in NEEDS.items() if shutil.which(program) is None]
    if missing:
        return f"an arm64 root needs more: apt install {' '.join(missing)}"
    if os.geteuid() != 0:
        return "an arm64 root has files of several users: run this as root (sudo make test-arm64-root)"
    kernel = tuple(int(n) for n in platform.release().split("-")[0].split(".")[:2])
    if kernel < (6, 7) and not namespace.registered():
        return f"Linux {platform.release()}: before 6.7 the emulator must be registered: apt install binfmt-support"
    return None


@dataclass(frozen=True)
class Ran:
    """A finished command: `seconds` by this machine's clock, `cpu` seconds of its cores, `out` and `err` as text."""

    code: int
    seconds: float
    cpu: float
    out: str
    err: str


def enter(
    command: Sequence[str | Path],
    *,
    root: Path | None = BASE,
    changes: Path | None = None,
    binds: Mapping[Path, str] | None = None,
    network: bool = False,
    cpu: str = namespace.CPU,
    timeout: float | None = None,
) -> Ran:
    """Run `command` in the root, or with root=None beside it; nothing is raised when it fails."""
    options = ["--cpu", cpu, *(["--network"] if network else [])]
    options += ["--root", str(root)] if root else []
    options += ["--changes", str(changes)] if changes else []
    for here, there in (binds or {}).items():
        options += ["--bind", f"{here}:{there}"]
    whole = [sys.executable, namespace.__file__, *options, "--", *map(str, command)]
    began, spent = time.monotonic(), _cpu()
    ran = subprocess.run(whole, capture_output=True, text=True, errors="replace", timeout=timeout)
    return Ran(ran.returncode, time.monotonic() - began, _cpu() - spent, ran.stdout, ran.stderr)


def _cpu() -> float:
    """Processor seconds of all that was run and has ended; they depend less than a clock on what else this machine does."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def make() -> Path:
    """The root, made when there is none or when it was made of something else.  RuntimeError with the log's end when that fails."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "lock", "w") as lock:  # given back when this process ends
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _make()


def _make() -> Path:
    recipe = f"{SUITE} {' '.join(PACKAGES)}\nleft out: {' '.join(LEFT_OUT)}\n"
    if STAMP.is_file() and STAMP.read_text() == recipe:
        return BASE
    begun = FOLDER / "base.new"
    for old in (STAMP, begun, BASE):
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    # The check of mmdebstrap looks for the emulator in this machine's own list, where it need not be.
    command = ["mmdebstrap", "--mode=root", "--skip=check/qemu", "--arch=arm64", "--variant=essential"]
    command += [f"--include={','.join(PACKAGES)}", "--dpkgopt=force-unsafe-io"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    print(
        f"making {BASE}: Debian {SUITE} for arm64, once; some minutes, as its packages are set up under emulation",
        flush=True,
    )
    ran = enter([*command, SUITE, begun, MIRROR], root=None, network=True)
    if ran.code:
        raise RuntimeError(f"mmdebstrap ended with {ran.code}:\n{ran.err[-3000:]}")
    begun.rename(BASE)
    STAMP.write_text(recipe)
    return BASE


def size(*folders: Path) -> int:
    """Bytes of all files below, each counted once."""
    found = {}
    for folder in folders:
        for path in folder.rglob("*") if folder.is_dir() else [folder]:
            status = path.lstat()
            found[status.st_dev, status.st_ino] = status.st_size
    return sum(found.values())


class Board:
    """One machine that begins as the root and keeps what commands write: `changes` is where that lies."""

    def __init__(self, changes: Path, cpu: str = namespace.CPU):
        self.changes, self.cpu = changes, cpu
        shutil.rmtree(changes, ignore_errors=True)

    def run(self, *command: str | Path, binds: Mapping[Path, str] | None = None, timeout: float = 1800) -> Ran:
        """A command without network."""
        return enter(command, changes=self.changes, binds=binds, cpu=self.cpu, timeout=timeout)

    def must(self, *command: str | Path, binds: Mapping[Path, str] | None = None, timeout: float = 1800) -> Ran:
        """The same; AssertionError with all it printed when it fails."""
        ran = self.run(*command, binds=binds, timeout=timeout)
        assert ran.code == 0, (
            f"{' '.join(map(str, command))} ended with {ran.code}\n{ran.out[-4000:]}\n{ran.err[-4000:]}"
        )
        return ran

    def copy(self, here: Path, there: str) -> int:
        """Put a file where a person would have copied it; its bytes."""
        inside = self.changes / "upper" / there.lstrip("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(here, inside)
        return inside.stat().st_size

    def written(self, below: str = "") -> int:
        """Bytes that lie on this machine beyond the root's."""
        return size(self.changes / "upper" / below.lstrip("/"))


if __name__ == "__main__":  # --check only says what is missing
    if lacking := why_not():
        raise SystemExit(lacking)
    if "--check" not in sys.argv:
        print(f"{make()}: {size(BASE) / 1e6:.0f} MB")
