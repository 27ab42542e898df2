"""docs/guide.md and docs/troubleshooting.md: what they say commands print is what they print, and the doctor has the lines they name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jetson.fake_kit import JETSON, REPO, TREES

GUIDE = (REPO / "docs" / "guide.md").read_text()
TROUBLE = (REPO / "docs" / "troubleshooting.md").read_text()


def printed(*words: str) -> str:
    command = [sys.executable, "-m", "quamba_edge", *words]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60).stdout.strip()


@pytest.mark.parametrize(
    ("words", "tree"),
    [(["doctor"], "jp62"), (["top", "--once"], "jp62"), (["power", "show"], "jp72"), (["power", "advise"], "jp72")],
)
def test_the_guide_shows_what_commands_print(words, tree):
    shown = GUIDE.split(f"$ quamba-edge {' '.join(words)}\n")[1]
    shown = re.split(r"\n\$ |\n```", shown)[0]
    told = printed(*words, "--root", f"tests/fake_sys/{tree}")
    built = r"^\w+ +gpu kernels .*\n"  # as many as are built where this runs
    assert re.sub(built, "", shown, flags=re.MULTILINE) == re.sub(built, "", told, flags=re.MULTILINE)


def test_the_doctor_has_the_lines_that_troubleshooting_names():
    cells = re.findall(r"doctor(?:: |'s )(`[^|;,.]*)", TROUBLE)
    named = {name for text in cells for name in re.findall(r"`([a-z ]+)`", text)}
    sources = "".join((REPO / "quamba_edge" / "apps" / f"{n}.py").read_text() for n in ("machine", "jetson"))
    known = set(re.findall(r'(?:Finding|_python_package)\(\s*"([a-z ]+)"|^ +"([a-z ]+)",$', sources, re.MULTILINE))
    known = {name for pair in known for name in pair if name}
    assert {"jetpack", "nvcc", "gpu access", "out of memory", "heat"} <= named <= known, named - known


def test_the_guides_options_and_files_exist():
    script = (JETSON / "setup.sh").read_text()
    for option in re.findall(r"setup\.sh (--[a-z-]+)", GUIDE + TROUBLE):
        assert f"    {option}" in script or f"{option}) " in script, option
    for name in re.findall(r"`(container/\S+?|power\.sh|systemd/\S+?)`", GUIDE):
        assert (JETSON / name).exists(), name
    assert Path(TREES / "jp62").is_dir()


def test_the_guides_figure_of_exposure():
    if not Path("/usr/bin/systemd-analyze").exists():
        pytest.skip("no systemd-analyze: apt install systemd")
    unit = JETSON / "systemd" / "quamba-edge.service"
    told = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", unit], capture_output=True, text=True
    ).stdout
    figure = re.search(r"exposure level for \S+: ([0-9.]+)", told)
    if figure is None:
        pytest.skip("this systemd-analyze has no --offline")
    assert (
        abs(float(figure[1]) - float(re.search(r"puts it at ([0-9.]+) on", GUIDE)[1])) < 0.35
    )  # versions differ a little
