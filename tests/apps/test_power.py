"""Power modes on recorded trees; a sweep with a stand-in for nvpmodel, which must always leave the board as it was."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from quamba_edge import cli, telemetry
from quamba_edge.apps import power, power_sweep
from quamba_edge.errors import BadUsage, Interrupted, Missing
from quamba_edge.runtime.model import load
from quamba_edge.telemetry import nvpmodel
from quamba_edge.telemetry.files import Tree
from quamba_edge.telemetry.sample import Sample
from tests.apps import tiny_bundle
from tests.fake_sys import make

REPO = Path(__file__).resolve().parents[2]
TREES = Path(make.__file__).parent
FIGURES = power_sweep.Figures(100.0, 20.0, 0.02, 0.5, 0.3, 10.0, 4.0, None, 918.0, 61.5, {"oc3": 4})
NVPMODEL = """
import sys, time
from pathlib import Path
root, mode = Path(sys.argv[1]), int(sys.argv[-1])
assert sys.argv[-2] == "-m" and sys.stdin.read() == ""
with open(root / "calls", "a") as f: print(mode, file=f)
if (root / "broken").exists() and mode != 1: sys.exit("NVPM ERROR: cannot")
(root / "var/lib/nvpmodel/status").write_text(f"pmode:{mode:04d} fmode:quiet")
"""


@pytest.fixture
def board(tmp_path):
    shutil.copytree(TREES / "jp62", tmp_path / "root")
    (tmp_path / "nvpmodel.py").write_text(NVPMODEL)
    return tmp_path / "root"


def command(root):
    return [sys.executable, str(root.parent / "nvpmodel.py"), str(root)]


def sweep(root, measure=lambda: FIGURES, **options):
    options = {"yes": True, "command": command(root), "settle_s": 0, "root": root, **options}
    return power_sweep.sweep(Path("x.qedge"), measure, **options)


def now(root):
    return nvpmodel.read(Tree(root)).current


def calls(root):
    return (root / "calls").read_text().split() if (root / "calls").exists() else []


def test_show(capsys):
    assert cli.main(["power", "show", "--root", str(TREES / "jp72"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["current"], told["default"], told["board"]) == ("15W", "25W", "orin-nano-8gb")
    bandwidths = {m["name"]: m["bandwidth_gbps"] for m in told["modes"]}
    assert bandwidths == {"15W": 68.3, "25W": 102.4, "MAXN_SUPER": 102.4, "7W": None}
    assert cli.main(["power", "show", "--root", str(TREES / "jp5")]) == 0
    out = capsys.readouterr().out
    assert "* 15W" in out and "sudo nvpmodel -m 1" in out and "25W" not in out


@pytest.mark.parametrize(
    ("tree", "goal", "mode", "number"),
    [
        ("jp62", "speed", "MAXN_SUPER", 2),
        ("jp62", "efficiency", "25W", None),
        ("jp62", "heat", "7W", 3),
        ("jp72", "efficiency", "25W", 1),
        ("jp5", "speed", "15W", None),
        ("jp5", "heat", "7W", 1),
    ],
)
def test_advice_goes_by_name_and_gives_this_boards_number(capsys, tree, goal, mode, number):
    assert cli.main(["power", "advise", "--for", goal, "--root", str(TREES / tree), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["mode"] == mode and told["command"] == (f"sudo nvpmodel -m {number}" if number is not None else None)
    assert told["measured"] is False and told["reason"]
    cli.main(["power", "advise", "--for", goal, "--root", str(TREES / tree)])
    assert ("already on" in capsys.readouterr().out) == (number is None)


def test_advice_without_known_clocks_goes_by_the_watts_in_names(tmp_path):
    (tmp_path / "etc").mkdir()
    rows = "".join(f"< POWER_MODEL ID={i} NAME={n} >\n" for i, n in enumerate(("MAXN", "10W", "40W")))
    (tmp_path / "etc/nvpmodel.conf").write_text(rows)
    assert [power.advise(g, tmp_path).mode for g in power.GOALS] == ["MAXN", "MAXN", "10W"]


def test_advice_from_a_sweep(board, tmp_path):
    speeds = {"15W": (14.0, 0.9, 9.0), "25W": (20.0, 0.8, 11.0), "MAXN_SUPER": (21.0, 1.0, 16.0)}

    def measure():
        tps, joules, watts = speeds[now(board)]
        return replace(FIGURES, decode_tps=tps, decode_j_per_token=joules, decode_w=watts)

    swept = sweep(board, measure, names=tuple(speeds))
    (tmp_path / "sweep.json").write_text("some log\n" + json.dumps(swept.to_json()) + "\n")
    found = {g: power.advise(g, board, tmp_path / "sweep.json") for g in power.GOALS}
    assert {g: a.mode for g, a in found.items()} == {"speed": "MAXN_SUPER", "efficiency": "25W", "heat": "15W"}
    assert all(a.measured for a in found.values()) and "25W 0.8, 15W 0.9" in found["efficiency"].reason
    for junk in ("", "[]", '{"rows": 3}', '{"rows": [{"mode": "25W"}]}', '{"rows": [7]}'):
        (tmp_path / "sweep.json").write_text(junk)
        with pytest.raises(BadUsage):
            power.advise("speed", board, tmp_path / "sweep.json")


def test_a_sweep_measures_each_mode_and_puts_the_first_back(board):
    seen = []
    swept = sweep(board, lambda: seen.append(now(board)) or FIGURES)
    assert seen == ["15W", "25W", "MAXN_SUPER"] and now(board) == swept.restored == "25W"
    skipped = {r["mode"]: r["skipped"] for r in swept.rows}
    assert "reboot" in skipped.pop("7W") and set(skipped.values()) == {None}
    text = power_sweep.text(swept)
    assert "MAXN_SUPER" in text and "0.500" in text and "not measured: it powers another part" in text
    assert text.endswith("the power mode is 25W again")


def test_nothing_is_changed_without_being_told(board, monkeypatch):
    with pytest.raises(BadUsage, match="from 25W to 15W, 25W, MAXN_SUPER, 7W and back; nothing was changed: add --yes"):
        sweep(board, yes=False)
    with pytest.raises(BadUsage, match="this board has 15W, 25W"):
        sweep(board, names=["50W"])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Missing, match="needs root: sudo"):
        sweep(board, command=power_sweep.NVPMODEL)
    (board / "var/lib/nvpmodel/status").unlink()
    with pytest.raises(Missing, match="could not be put back"):
        sweep(board)
    assert calls(board) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("broken"), MemoryError])
def test_errors_and_control_c_put_the_mode_back(board, error):
    def measure():
        raise error

    with pytest.raises(Interrupted if error is KeyboardInterrupt else (RuntimeError, MemoryError)) as raised:
        sweep(board, measure)
    assert now(board) == "25W" and calls(board) == ["0", "1"]
    if error is KeyboardInterrupt:
        assert "the power mode is 25W again" in str(raised.value)


def test_a_mode_that_does_not_come_is_skipped_and_one_that_cannot_be_left_is_told(board):
    (board / "broken").touch()
    rows = sweep(board, names=("15W", "25W")).rows
    assert "left it in 25W, saying: NVPM ERROR: cannot" in rows[0]["skipped"] and rows[1]["skipped"] is None

    def lose():
        (board / "broken").unlink(missing_ok=True)
        (board / "var/lib/nvpmodel/status").write_text("pmode:0000")
        (board.parent / "nvpmodel.py").unlink()
        return FIGURES

    with pytest.raises(Missing, match="could not be put back to 25W .*: sudo nvpmodel -m 1"):
        sweep(board, lose, names=("25W",))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_put_the_mode_back(board, how):
    program = f"""
        import time
        from pathlib import Path
        from quamba_edge.apps import power_sweep
        power_sweep.sweep(Path("x"), lambda: time.sleep(60), yes=True, settle_s=0, names=["15W"],
                          root=Path({str(board)!r}), command={command(board)!r})
    """
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    running = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, stderr=subprocess.PIPE
    )
    while now(board) != "15W":
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.02)
    running.send_signal(how)
    _, err = running.communicate(timeout=30)
    assert now(board) == "25W" and b"the power mode is 25W again" in err


class Metered:
    """A machine that draws 5 W and, as a counter would have it, never anything else."""

    name = "metered"

    def read(self):
        return Sample(time.monotonic_ns(), self.name, power_w=5.0, power_of="VDD_IN", temps_c={"tj": 50.0, "cpu": 48.0})

    def close(self):
        pass


def test_measuring_a_bundle(tmp_path):
    session = load(tiny_bundle.write(tmp_path / "tiny.qedge"), "reference").session()
    found = power_sweep.measure(session, 50, Metered(), seconds=2.5, idle_s=0.2)
    assert found.prefill_tps > 0 and found.decode_tps > 0 and found.hottest_c == 50.0
    assert found.decode_j_per_token == pytest.approx(5.0 / found.decode_tps) and found.energy_reason is None
    assert found.idle_w is found.decode_net_j_per_token is None  # 0.2 s at rest tell nothing


def test_measuring_where_power_is_not_told(tmp_path):
    session = load(tiny_bundle.write(tmp_path / "tiny.qedge"), "reference").session()
    found = power_sweep.measure(session, 50, telemetry.open_source("linux", tmp_path), seconds=0.1, idle_s=0)
    assert (
        found.decode_tps > 0 and found.decode_j_per_token is None and "does not tell its power" in found.energy_reason
    )


def test_wrong_usage(capsys, tmp_path):
    bundle = tiny_bundle.write(tmp_path / "tiny.qedge")
    tree = ["--root", str(TREES / "jp62")]
    for words in (["sweep"], ["sweep", bundle, *tree], ["show", bundle], ["advise", "--for", "fame", *tree], ["melt"]):
        assert cli.main(["power", *map(str, words)]) == 2, words
    assert cli.main(["power", "sweep", "nothing.qedge"]) == 3
    if not Path("/etc/nvpmodel.conf").exists():
        assert cli.main(["power", "show"]) == 4
        assert cli.main(["power", "sweep", str(bundle), "--yes"]) == 4
    assert "only Jetsons" in capsys.readouterr().err
