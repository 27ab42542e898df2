"""The arm64 root, what a person copies into it, and the table of what each step took."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.arm64root import namespace, root

PYTHON = "3.11"  # Debian 12's
# What the board's tests need beside the kit.
TESTING = ("pytest", "pytest-xdist", "hypothesis", "httpx2")
VENV = "/root/venv/bin"
# A small bundle of each family.
MODELS = {"mamba": "storyteller-mamba1-5m", "mamba2": "storyteller-mamba2-5m"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lacking = root.why_not()
    for item in items:
        if Path(item.path).parent == Path(__file__).parent and lacking and item.get_closest_marker("arm64"):
            item.add_marker(pytest.mark.skip(reason=lacking))


class Report:
    """Steps as they are done: seconds here are an emulator's, megabytes (1e6 bytes) a board's too."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, step: str, ran: root.Ran | None = None, written: int | None = None, **more: Any) -> None:
        row = {"step": step, "bytes": written, **more}
        row |= {"seconds": ran.seconds, "cpu_seconds": ran.cpu} if ran else {}
        self.rows.append({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items() if v is not None})

    def table(self) -> str:
        lines = [f"{'step':56}{'seconds':>9}{'of CPU':>9}{'MB':>8}"]
        for row in self.rows:
            seconds = [f"{row[k]:.1f}" if k in row else "" for k in ("seconds", "cpu_seconds")]
            size = f"{row['bytes'] / 1e6:.1f}" if "bytes" in row else ""
            lines.append(f"{row['step']:56}{seconds[0]:>9}{seconds[1]:>9}{size:>8}".rstrip())
        return "\n".join(lines)


REPORT = Report()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if REPORT.rows:
        terminalreporter.section("an arm64 root; seconds are an emulator's, not a board's")
        terminalreporter.write_line(REPORT.table())


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    yield REPORT
    version = subprocess.run([namespace.EMULATOR, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    said = {"emulated": True, "emulator": version, "cpu": namespace.CPU, "host": platform.machine()}
    said |= {"system": f"Debian {root.SUITE}", "python": PYTHON, "steps": REPORT.rows}
    (root.FOLDER / "report.json").write_text(json.dumps(said, indent=1) + "\n")


@pytest.fixture(scope="session")
def base() -> Path:
    return root.make()


@pytest.fixture(scope="session")
def kit() -> Path:
    """The newest kit, as one file."""
    kits = sorted((root.REPO / "build").glob("quamba-edge-kit-*.tar"), key=lambda p: p.stat().st_mtime)
    if not kits:
        pytest.skip("no build/quamba-edge-kit-*.tar: make offline-kit")
    return kits[-1]


@pytest.fixture(scope="session")
def bundles() -> dict[str, Path]:
    """By family: packed here, by this source tree, to 4 bits; kept while the sources are the same."""
    import quamba_edge

    sources = sorted((root.REPO / "quamba_edge").rglob("*.py"))
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()
    folder = root.FOLDER / "bundles" / digest[:16]
    packed = {family: folder / f"{model}-w4a8.qedge" for family, model in MODELS.items()}
    if not folder.exists():
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.mkdir(parents=True)
    for family, path in packed.items():
        if not path.exists():
            source = root.REPO / "demos" / "models" / MODELS[family]
            quamba_edge.quantize(source, path, "w4a8", calib_samples=32, calib_len=256, eval_tokens=4096)
    return packed


@pytest.fixture(scope="session")
def testing_wheels() -> Path:
    """pytest and what else only tests need, for the board; kept while constraints.txt is the same."""
    folder, stamp = root.FOLDER / "wheels", root.FOLDER / "wheels.txt"
    constraints = root.REPO / "constraints.txt"
    wanted = f"{' '.join(TESTING)}\n{constraints.read_text()}"
    if stamp.is_file() and stamp.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "-d", str(folder)]
    command += ["--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp"]
    command += [f"--abi={abi}" for abi in (f"cp{PYTHON.replace('.', '')}", "abi3", "none")]
    command += [f"--platform=manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)] + [
        "--platform=manylinux2014_aarch64"
    ]
    subprocess.run([*command, "-c", str(constraints), *TESTING], check=True)
    stamp.write_text(wanted)
    return folder


@pytest.fixture(scope="session")
def board(base: Path) -> root.Board:
    return root.Board(root.FOLDER / "board")


@pytest.fixture(scope="session")
def installed(board: root.Board, kit: Path, bundles: dict[str, Path], report: Report) -> root.Board:
    """The board after two files are copied and installed; every step is measured."""
    report.add("the root: Debian, Python, libstdc++", None, root.size(root.BASE))
    report.add("file 1: the kit", None, board.copy(kit, "/root/kit.tar"))
    report.add("file 2: a bundle", None, board.copy(bundles["mamba"], "/root/mamba.qedge"))

    def step(name: str, *command: str) -> None:
        before = board.written()
        report.add(name, board.must(*command), board.written() - before)

    step("unpack the kit", "tar", "-C", "/root", "-xf", "/root/kit.tar")
    step("check its sums", "sh", "-c", "cd /root/quamba-edge-kit && sha256sum --check --quiet SHA256SUMS")
    step("python3 -m venv", "python3", "-m", "venv", "/root/venv")
    pip = [f"{VENV}/python", "-m", "pip", "--disable-pip-version-check", "-q", "install"]
    step("pip install, no network", *pip, "--no-index", "--find-links", "/root/quamba-edge-kit/wheels", "quamba-edge")
    report.add(
        "of these, quamba_edge itself", None, board.written(f"root/venv/lib/python{PYTHON}/site-packages/quamba_edge")
    )
    board.copy(bundles["mamba2"], "/root/mamba2.qedge")  # for the tests only
    return board
