"""The tests of what runs on a board, run on an arm64 board by its own Python against the installed wheel; no torch is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.arm64root import root
from tests.arm64root.conftest import TESTING, VENV, Report
from tests.arm64root.root import Board

# The source tree as the tests look for it, but for the package, which is the installed one.
SHOWN = ("tests", "demos", "docs", "pyproject.toml", "csrc")

# Each folder with more words for pytest: what is left out is the workstation's.
GROUPS = {
    "telemetry": [],
    "runtime": ["--ignore=tests/runtime/test_drift.py"],  # it packs
    "golden": [],
    "backends": [],
    "profile": [],
    "tasks": [],
    "apps": [
        "--ignore=tests/apps/test_pack.py",
        "--deselect=tests/apps/test_plan.py::test_a_checkpoint_is_planned_from_its_config",
        "--deselect=tests/apps/test_plan.py::test_what_cannot_be_planned",
        # It counts samples of 2.5 seconds by the clock: an emulator on busy cores has too few.
        "--deselect=tests/apps/test_power.py::test_measuring_a_bundle",
    ],
    "bundle": ["--ignore=tests/bundle/test_outline.py"],
    "serve": ["--ignore=tests/serve/test_process.py"],  # openai's client
}

pytestmark = pytest.mark.arm64


@pytest.fixture(scope="module")
def ready(installed: Board, testing_wheels: Path) -> Board:
    pip = [f"{VENV}/python", "-m", "pip", "-q", "install", "--no-index", "--find-links", "/srv/wheels"]
    pip += ["--find-links", "/root/quamba-edge-kit/wheels", "quamba-edge[serve]"]
    installed.must(*pip, *TESTING, binds={testing_wheels: "/srv/wheels"})
    return installed


@pytest.mark.parametrize("group", GROUPS)
def test_group(ready: Board, group: str, report: Report) -> None:
    binds = {root.REPO / name: f"/srv/quamba/{name}" for name in SHOWN}
    command = [f"{VENV}/python", "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-rs"]
    command += ["-m", "not slow and not arm64", *GROUPS[group], f"tests/{group}"]
    ran = ready.run("sh", "-c", 'cd /srv/quamba && exec "$@"', "sh", *command, binds=binds, timeout=7200)
    assert ran.code == 0, ran.out[-6000:] + ran.err[-2000:]
    report.add(f"tests/{group}: {re.sub(' in .*', '', ran.out.splitlines()[-1])}", ran)
