"""jetson/setup.sh on a clean arm64 root with the files of a JetPack: once it sets up and talks, twice it changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.arm64root import root
from tests.arm64root.conftest import Report
from tests.arm64root.root import Board

pytestmark = pytest.mark.arm64

SAID = {"jp62": "L4T 36.4.7, JetPack 6, CUDA 12.6", "jp72": "L4T 39.2.0, JetPack 7, CUDA 13"}


def files(board: Board) -> dict[str, tuple[int, int]]:
    """Size and time of every file on the board beyond the root's; Python's own caches of bytes do not count."""
    upper = board.changes / "upper"
    found = {str(p.relative_to(upper)): p.lstat() for p in upper.rglob("*") if not p.is_dir() or p.is_symlink()}
    return {name: (s.st_size, s.st_mtime_ns) for name, s in found.items() if not name.endswith(".pyc")}


@pytest.mark.parametrize("tree", SAID)
def test_once_and_twice(base: Path, kit: Path, bundles: dict[str, Path], tree: str, report: Report) -> None:
    board = Board(root.FOLDER / f"setup-{tree}")
    board.copy(kit, "/root/kit.tar")
    board.copy(bundles["mamba"], "/root/mamba.qedge")
    board.must("tar", "-C", "/root", "-xf", "/root/kit.tar")
    fake = {root.REPO / "tests" / "fake_sys" / tree: "/srv/fake"}
    # The fake files are a board's, of which this root has not the GPU: pycuda is left out.
    command = ["/root/quamba-edge-kit/setup.sh", "--root", "/srv/fake", "--bundle", "/root/mamba.qedge"]

    before = files(board)
    dry = board.must(*command, "--dry-run", binds=fake)
    assert SAID[tree] in dry.out and "nothing was changed" in dry.out and files(board) == before
    refused = board.run(*command, binds=fake)
    assert refused.code == 2 and "no --yes" in refused.out and files(board) == before

    written = board.written()
    first = board.must(*command, "--yes", binds=fake)
    report.add(f"setup.sh ({tree}), to the first words", first, board.written() - written)
    assert "/root/.quamba-edge/venv/bin/quamba-edge doctor" in first.out and "To talk:" in first.out, first.out
    assert board.must("/root/.local/bin/quamba-edge", "--version").out

    before = files(board)
    second = board.must(*command, "--yes", binds=fake)
    report.add(f"setup.sh ({tree}), again", second)
    assert "Everything is already so: nothing was changed." in second.out and files(board) == before
