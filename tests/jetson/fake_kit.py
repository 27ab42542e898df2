"""A kit of a few hundred bytes and a board to put it on, for tests of jetson/setup.sh: no network, no compiler, no Jetson."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
JETSON = REPO / "jetson"
TREES = REPO / "tests" / "fake_sys"
PYTHON = ".".join(map(str, sys.version_info[:2]))
SAYS = """import sys
def main():
    print("PROGRAM", *sys.argv[1:])
    sys.exit({code})
"""


def wheel(folder: Path, name: str, files: dict[str, str], metadata: str = "", entry_points: str = "") -> None:
    """Write NAME (such as "tiny-1.0") as a pure Python wheel."""
    stem, info = name.replace("-", "_", name.count("-") - 1), f"{name}.dist-info"
    project, version = name.rsplit("-", 1)
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n{metadata}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    if entry_points:
        files[f"{info}/entry_points.txt"] = entry_points
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def quamba_edge(folder: Path, marker: str = "first", code: int = 0) -> None:
    """A wheel whose program prints its arguments and ends with `code`; `marker` tells two builds of one version apart."""
    wheel(
        folder,
        "quamba_edge-0.1.0",
        {"quamba_edge/__init__.py": f"build = {marker!r}\n", "quamba_edge/cli.py": SAYS.format(code=code)},
        "Provides-Extra: serve\nRequires-Dist: tinyserve; extra == 'serve'\nProvides-Extra: jetson\n",
        "[console_scripts]\nquamba-edge = quamba_edge.cli:main\n",
    )


def sums(kit: Path) -> None:
    paths = sorted(str(p.relative_to(kit)) for p in kit.rglob("*") if p.is_file() and p.name != "SHA256SUMS")
    rows = [f"{hashlib.sha256((kit / p).read_bytes()).hexdigest()}  {p}\n" for p in paths]
    (kit / "SHA256SUMS").write_text("".join(rows))


def make(kit: Path) -> Path:
    """All of jetson/ but its Python, kit.txt, wheels, a bundle, sums: what `make offline-kit` lays out."""
    shutil.copytree(JETSON, kit, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (kit / "wheels").mkdir()
    quamba_edge(kit / "wheels")
    wheel(kit / "wheels", "tinyserve-1.0", {"tinyserve.py": ""})
    wheel(kit / "wheels", "pycuda-2026.1", {"pycuda/__init__.py": ""})
    (kit / "bundle").mkdir()
    (kit / "bundle" / "tale.qedge").write_bytes(b"not really a bundle")
    lines = ["version=0.1.0", "wheel=wheels/quamba_edge-0.1.0-py3-none-any.whl", f"pythons={PYTHON}"]
    (kit / "kit.txt").write_text("\n".join([*lines, "extras=serve cuda", "bundle=bundle/tale.qedge"]) + "\n")
    sums(kit)
    return kit


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


class Board:
    """A home folder, system files, programs that come before the system's, and what setup.sh does there."""

    def __init__(self, folder: Path, tree: str = "jp62"):
        self.home, self.root, self.programs = folder / "home", folder / "root", folder / "programs"
        self.home.mkdir(parents=True)
        self.programs.mkdir()
        if tree:
            shutil.copytree(TREES / tree, self.root)

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "XDG_", "PYTHON"))}
        path = f"{self.programs}:{os.environ['PATH']}"
        return kept | {"HOME": str(self.home), "PATH": path, "PYTHON": sys.executable, "PIP_CONFIG_FILE": os.devnull}

    def setup(self, script: Path, *options: str, **environment: str) -> subprocess.CompletedProcess:
        command = ["bash", str(script / "setup.sh"), "--root", str(self.root), *options]
        env = self.environment | environment
        return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)

    def files(self) -> dict[str, tuple[int, int]]:
        """Every file and link with its size and time of change."""
        found = [p for p in self.home.rglob("*") if "__pycache__" not in p.parts and not p.is_dir()]
        return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in found}
