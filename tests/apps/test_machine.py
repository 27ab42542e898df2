"""doctor on recorded trees and on broken copies of them: each trap is told, with the command that mends it."""

import json
import shutil
from pathlib import Path

import pytest

from quamba_edge import cli, doctor
from quamba_edge.apps import jetson, machine
from quamba_edge.backends import cpu
from tests.backends.test_cubin import CUDA_13, header
from tests.fake_sys import make

TREES = Path(make.__file__).parent
GOLDEN = TREES.parent / "golden" / "mamba2.qedge"


@pytest.fixture
def board(tmp_path):
    shutil.copytree(TREES / "jp62", tmp_path / "root")
    return tmp_path / "root"


def examined(root, bundle=None):
    return {f.name: f for f in doctor.examine(root, bundle).findings}


def states(root):
    return {name: f.state for name, f in examined(root).items()}


@pytest.mark.parametrize(
    ("tree", "warnings", "jetpack"),
    [
        ("jp5", {"jetpack", "swap", "storage"}, "L4T 35.4.1, JetPack 5.1"),
        ("jp62", {"jetpack", "swap"}, "L4T 36.4.7, JetPack 6.2.1"),
        ("jp72", {"power mode", "swap"}, "L4T 39.2.0, JetPack 7.2"),
    ],
)
def test_three_jetpacks(tree, warnings, jetpack):
    found = examined(TREES / tree)
    assert {n for n, f in found.items() if f.state == "warn"} == warnings
    assert all(found[n].fix for n in warnings) and found["jetpack"].found.startswith(jetpack)
    assert found["libcuda"].found.startswith("/usr/lib/aarch64-linux-gnu/") and "orin-nano-8gb" in found["board"].found
    assert found["power sensor"].found == "VDD_IN, read by tegra" and "37 short peaks" in found["power supply"].found
    assert not {"python", "numpy", "cpu kernels"} & set(found)  # of the running machine, not of the tree


def test_the_known_traps_by_release(board):
    traps = {
        "36 4.0": None,
        "36 4.3": None,
        "36 4.4": None,
        "36 4.7": "NvMap",
        "36 5.0": None,
        "36 5.2": None,
        "36 3.0": "12.2",
    }
    for release, trap in {**traps, "38 2.0": "do not support Orin", "39 2.1": None, "40 1.0": "does not know"}.items():
        major, minor = release.split()
        (board / "etc/nv_tegra_release").write_text(
            f"# R{major} (release), REVISION: {minor}, GCID: 1, BOARD: generic\n"
        )
        found = examined(board)["jetpack"]
        assert f"L4T {major}.{minor}" in found.found and (found.state == "warn") == (
            trap not in (None, "does not know")
        )
        assert trap is None or trap in found.found
    (board / "etc/nv_tegra_release").write_text("garbage\n")
    assert states(board)["jetpack"] == "warn"
    assert jetson.l4t("# R36 (release), REVISION: 4, GCID") == "36.4" and jetson.l4t("") is None


def test_power_mode_and_clock(board):
    found = examined(TREES / "jp72")["power mode"]
    assert found.found.startswith("15W; 25W is better") and found.fix == "sudo nvpmodel -m 1"
    (board / "var/lib/nvpmodel/status").write_text("pmode:0002")
    assert "over-current throttling" in examined(board)["power mode"].found
    gpu = board / "sys/class/devfreq/17000000.gpu"
    (gpu / "max_freq").write_text("624000000\n")  # seen on boards after an upgrade
    (board / "var/lib/nvpmodel/status").write_text("pmode:0001")
    held = examined(board)["gpu clock"]
    assert held.state == "warn" and "held at 624 MHz, 25W allows 918" in held.found and "nvpmodel -m 1" in held.fix
    for name in ("min_freq", "max_freq"):
        (gpu / name).write_text("918000000\n")
    assert "locked at 918" in examined(board)["gpu clock"].found
    shutil.rmtree(gpu)
    (board / "var/lib/nvpmodel/status").unlink()
    (board / "etc/nvpmodel.conf").unlink()
    assert states(board)["gpu clock"] == states(board)["power mode"] == "absent"


def test_an_empty_tree_and_one_of_garbage(tmp_path, board):
    (tmp_path / "empty").mkdir()
    found = states(tmp_path / "empty")
    assert found["memory"] == "warn" and found["power sensor"] == "absent" and "jetpack" not in found
    for path in board.rglob("*"):
        if path.is_file():
            path.write_bytes(b"\xff\x00garbage -1 \n")
    assert states(board)["memory"] == "warn"
    assert examined(Path("nowhere"))["libcuda"].state == "absent"


def test_under_voltage_is_a_matter_of_the_supply(board):
    (board / "sys/class/hwmon/hwmon3/oc1_event_cnt").write_text("12\n")
    found = examined(board)["power supply"]
    assert found.state == "warn" and "12 under-voltage" in found.found


def test_heat(board):
    assert examined(board)["heat"].found == "50 C at most (gpu); clocks fall at 99 C"
    zone = next(p for p in (board / "sys/class/thermal").iterdir() if (p / "type").read_text().startswith("tj"))
    (zone / "temp").write_text("97500\n")
    hot = examined(board)["heat"]
    assert hot.state == "warn" and hot.found.startswith("98 C at most (tj)") and "jetson_clocks --fan" in hot.fix


def test_device_files_that_this_user_may_not_open(tmp_path, monkeypatch):
    assert list(jetson.gpu_access(tmp_path)) == []
    (tmp_path / "dev/dri").mkdir(parents=True)
    for name in ("nvmap", "nvhost-ctrl-gpu", "dri/renderD128", "dri/card0"):
        (tmp_path / "dev" / name).touch()
    (found,) = jetson.gpu_access(tmp_path)
    assert found.state == "ok" and found.found.startswith("3 device files")
    monkeypatch.setattr(jetson.os, "access", lambda path, mode: "render" not in str(path))  # root may open everything
    (found,) = jetson.gpu_access(tmp_path)
    assert found.state == "absent" and "renderD128" in found.found and "usermod -aG video,render" in found.fix


def test_what_pycuda_needs_is_named_for_the_release(monkeypatch):
    monkeypatch.setattr(jetson.shutil, "which", lambda name: None)
    monkeypatch.setattr(jetson.Path, "exists", lambda path: False)
    assert jetson._nvcc((13, 2)).fix == "sudo apt install cuda-toolkit-13-2"
    assert jetson._nvcc(None).fix == "sudo apt install cuda-toolkit-12-6"


def test_processes_that_linux_ended(board):
    assert "out of memory" not in examined(board)
    (board / "proc/vmstat").write_text("nr_free_pages 9\noom_kill 0\n")
    assert "out of memory" not in examined(board)
    (board / "proc/vmstat").write_text("nr_free_pages 9\noom_kill 3\n")
    assert examined(board)["out of memory"].found.endswith("none left: 3")


def test_memory_against_a_bundle(board, capsys):
    enough = examined(board, GOLDEN)["memory"]
    need = machine.bundle_bytes(GOLDEN)
    assert enough.state == "ok" and "mamba2.qedge needs" in enough.found and need > GOLDEN.stat().st_size
    info = board / "proc/meminfo"
    info.write_text(info.read_text().replace("4015000 kB", " 300000 kB"))
    assert cli.main(["doctor", "--root", str(board), "--bundle", str(GOLDEN), "--json"]) == 4
    out = capsys.readouterr()
    told = json.loads(out.out.splitlines()[-1])
    assert told["ok"] is False and told["root"] == str(board)
    assert "0.31 GB are available" in out.err and "vm.drop_caches" in out.err and "multi-user" in out.err
    assert cli.main(["doctor", "--root", str(board)]) == 0
    assert "as far as the files below" in capsys.readouterr().out
    assert cli.main(["doctor", "--bundle", "nothing.qedge"]) == 3
    assert cli.main(["doctor", "--root", "nowhere"]) == 2


def test_swap(board):
    assert "4.0 GB of zram" in examined(board)["swap"].found and "nvzramconfig" in examined(board)["swap"].fix
    with (board / "proc/swaps").open("a") as f:
        f.write("/swapfile file 8388604 0 -2\n")
    assert examined(board)["swap"].state == "ok" and "8.6 GB on disk" in examined(board)["swap"].found
    (board / "proc/swaps").write_text("Filename Type Size Used Priority\n")
    assert examined(board)["swap"].found == "none"


def test_storage():
    mounts = (
        "overlay / overlay rw 0 0\n/dev/mmcblk1p1 /data ext4 rw 0 0\nserver:/x /data/my\\040net nfs4 rw 0 0\njunk\n"
    )
    assert machine.mounted(mounts, "/data/b.qedge") == ("/dev/mmcblk1p1", "ext4")
    assert machine.mounted(mounts, "/data/my net/b.qedge") == ("server:/x", "nfs4")
    assert machine.mounted(mounts, "/database/b.qedge") == ("overlay", "overlay")
    assert machine.mounted("", "/") == (None, None)


def test_kernels_for_the_gpu(board, tmp_path, monkeypatch):
    (tmp_path / "native" / "sm_87").mkdir(parents=True)
    monkeypatch.setattr(machine, "NATIVE", tmp_path / "native")
    assert "not built" in examined(board)["gpu kernels"].found
    kernel = tmp_path / "native" / "sm_87" / "ssd.cubin"
    kernel.write_bytes(header())
    assert examined(board)["gpu kernels"].found == "1 files that CUDA 12.6 takes"
    kernel.write_bytes(header(**CUDA_13))
    found = examined(board)["gpu kernels"]
    assert found.state == "absent" and "sm_87/ssd.cubin: built with CUDA 13, this driver is CUDA 12.6" in found.found
    assert examined(TREES / "jp72")["gpu kernels"].state == "ok"
    kernel.write_bytes(b"text")
    assert "not a cubin" in examined(board)["gpu kernels"].found


def test_this_machine(monkeypatch):
    found = examined(Path("/"))
    assert {"python", "memory", "libcuda", "power sensor", "swap", "cpu kernels"} <= set(found)
    if cpu.why_not() is None:
        assert found["cpu kernels"].found.startswith(cpu.instruction_sets()[0])
    monkeypatch.setattr(cpu, "why_not", lambda: "it is not built")
    assert examined(Path("/"))["cpu kernels"].fix == "make native"


@pytest.mark.parametrize("version", [None, (12, 6)])
def test_the_driver_of_this_machine(monkeypatch, version):
    monkeypatch.setattr(machine, "driver_version", lambda: version)
    found = examined(Path("/"))["libcuda"]
    assert (found.state == "ok") == (version is not None) and (version is None or "CUDA 12.6" in found.found)


def test_energy_counters_that_only_root_reads(tmp_path):
    counter = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    counter.mkdir(parents=True)  # a folder cannot be read as a file, not even by root
    (counter.parent / "name").write_text("package-0\n")
    found = examined(tmp_path)["power sensor"]
    assert found.state == "absent" and found.fix.startswith("sudo chmod a+r")
    counter.rmdir()
    counter.write_text("123\n")
    assert examined(tmp_path)["power sensor"].found == "package-0, read by linux"


NUMPY = """

IMPORTANT: PLEASE READ THIS FOR ADVICE ON HOW TO SOLVE THIS ISSUE!

Original error was: {}
"""


@pytest.mark.parametrize(
    ("library", "fix"),
    [("libstdc++.so.6", "sudo apt install libstdc++6"), ("libother.so.1", "apt-file search libother.so")],
)
def test_a_system_library_that_numpy_misses_is_named(library, fix):
    """A Debian of python3 alone, without apt, has no C++ library."""
    why = f"{library}: cannot open shared object file: No such file or directory"
    found = doctor._unloaded("backends", "missing", "cannot be loaded", ImportError(NUMPY.format(why)))
    assert (found.found, found.fix) == (f"cannot be loaded: {why}", fix)
    assert doctor._unloaded("x", "missing", "what", ImportError("no numpy", name="numpy")).fix == "pip install numpy"
