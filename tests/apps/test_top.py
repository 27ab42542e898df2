"""`quamba-edge top`: one sample as JSON, the live picture on a real terminal, and how it is left."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from dataclasses import fields
from pathlib import Path

import pytest

from quamba_edge import cli
from quamba_edge.apps import top
from quamba_edge.telemetry.sample import Sample
from tests.fake_sys import make

REPO = Path(__file__).resolve().parents[2]
TREES = Path(make.__file__).parent


@pytest.mark.parametrize("root", [*make.TREES, None])
def test_once_as_json_has_every_field(capsys, root):
    where = ["--root", str(TREES / root)] if root else []
    assert cli.main(["top", "--once", "--json", *where]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"machine", "board", *(f.name for f in fields(Sample))}
    assert told["ram_total_bytes"] > told["ram_used_bytes"] > 0
    if root:
        assert told["board"] == "orin-nano-8gb" and told["power_w"] > 5 and told["rails"]["VDD_IN"]["voltage_v"] > 5
    else:
        assert told["cpu_load_pct"] is not None


def test_once_in_words(capsys):
    assert cli.main(["top", "--once", "--root", str(TREES / "jp62")]) == 0
    out = capsys.readouterr().out
    for words in (
        "mode 25W",
        "12.06 W  VDD_IN",
        "VDD_SOC, in the above",
        "87 %",
        "918 MHz",
        "tj 49.3",
        "oc3 37",
        "NvMap",
    ):
        assert words in out
    assert "-256" not in out and "None" not in out and "nan" not in out


@pytest.mark.parametrize(
    "words",
    [["--root", "nowhere"], ["--hz", "0"], ["--source", "crystal"], ["--root", str(TREES / "jp5"), "--source", "jtop"]],
)
def test_wrong_usage(capsys, words):
    assert cli.main(["top", *words]) == 2
    assert capsys.readouterr().out == ""


def test_into_a_pipe_it_is_one_line_a_sample(monkeypatch):
    naps = []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", nap)
    out = io.StringIO()
    assert top.watch(TREES / "jp62", hz=4, stream=out).power_mode == "25W"
    assert out.getvalue().count("\n") == 3 and "\x1b" not in out.getvalue() and "12.06 W" in out.getvalue()
    naps.clear()
    out = io.StringIO()
    top.watch(TREES / "jp62", as_json=True, stream=out)
    assert [json.loads(row)["power_of"] for row in out.getvalue().splitlines()] == ["VDD_IN"] * 3


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_leaving_gives_the_terminal_back_as_it_was(how):
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-m", "quamba_edge", "top", "--hz", "10", "--root", str(TREES / "jp62")]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    running = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=environment)
    shown = b""
    while b"VDD_IN" not in shown:
        assert select.select([ours], [], [], 60)[0], "nothing was shown for a minute"
        shown += os.read(ours, 65536)
    running.send_signal(how)
    assert running.wait(30) == 0 and running.stderr.read() == b""
    running.stderr.close()
    os.set_blocking(ours, False)
    shown += os.read(ours, 1 << 20)
    assert shown.startswith(top.OTHER_SCREEN.encode()) and shown.rstrip(b"\r\n").endswith(top.SAME_SCREEN.encode())
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
