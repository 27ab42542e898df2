"""A Jetson's files on recorded trees of three JetPacks, with every way in which a board's files fail."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quamba_edge import telemetry
from quamba_edge.errors import BadUsage, Missing
from quamba_edge.telemetry import files, nvpmodel
from quamba_edge.telemetry.sample import Sample
from quamba_edge.telemetry.tegra import Tegra
from tests.fake_sys import make

TREES = Path(make.__file__).parent


class Clock:
    """Time that moves only when told."""

    def __init__(self):
        self.ns = 0

    def __call__(self):
        return self.ns

    def tick(self, seconds):
        self.ns += round(seconds * 1e9)


@pytest.fixture
def board(tmp_path):
    """A copy of the JetPack 6.2 tree, to break things in."""
    shutil.copytree(TREES / "jp62", tmp_path / "root")
    return tmp_path / "root"


def failing(number, *signs):
    """A reader that answers with this errno for paths that hold one of these signs."""

    def read(path):
        if any(sign in path for sign in signs):
            raise OSError(number, os.strerror(number), path)
        return files.read_bytes(path)

    return read


def test_the_trees_are_what_the_script_writes(tmp_path):
    make.write(tmp_path)
    for name in make.TREES:
        written = {str(p.relative_to(tmp_path)): p.read_text() for p in (tmp_path / name).rglob("*") if p.is_file()}
        kept = {str(p.relative_to(TREES)): p.read_text() for p in (TREES / name).rglob("*") if p.is_file()}
        assert kept == written, "run python tests/fake_sys/make.py"


@pytest.mark.parametrize(
    ("name", "watts", "load", "mhz", "mode", "nvmap"),
    [
        ("jp5", 5.016 * 1.136, 0.0, (306, 624), "15W", None),
        ("jp62", 5.024 * 2.400, 87.3, (918, 918), "25W", 2 << 30),
        ("jp72", 5.016 * 1.504, 12.5, (306, 612), "15W", 151040 << 10),
    ],
)
def test_every_field_in_its_unit(name, watts, load, mhz, mode, nvmap):
    source = telemetry.best(TREES / name)
    sample = source.read()
    assert source.name == sample.source == "tegra" and sample.power_of == "VDD_IN"
    assert sample.power_w == pytest.approx(watts) and list(sample.rails) == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]
    assert sample.rails["VDD_IN"].voltage_v == pytest.approx(5.02, abs=0.01)
    assert sample.rails["VDD_IN"].limit_a == 4.05 and sample.rails["VDD_IN"].alarm is False
    assert sample.gpu_load_pct == load and (sample.gpu_mhz, sample.gpu_max_mhz) == mhz
    assert sample.power_mode == mode and sample.nvmap_used_bytes == nvmap
    assert sample.temps_c["tj"] == 49.312 and not {"cv0", "cv1", "cv2"} & set(sample.temps_c)
    assert sample.over_current_events == {"oc1": 0, "oc2": 0, "oc3": 37}
    assert sample.cpu_mhz == (729.6, 729.6) and (sample.fan_pct, sample.fan_rpm) == (40.0, 2315)
    assert sample.emc_max_mhz == (3199 if mode == "25W" else 2133) and sample.emc_mhz is sample.emc_load_pct is None
    assert 7.4e9 < sample.ram_total_bytes < 8e9 and sample.ram_used_bytes < sample.ram_total_bytes
    assert sample.swap_used_bytes == 140000 << 10 and sample.cma_free_bytes == 251000 << 10
    assert sample.power_interval_ms == 2 and len(sample.cpu_loads_pct) == 6 and sample.cpu_load_pct is None


def test_zones_that_answer_eagain_are_left_out(board):
    for zone in board.glob("sys/class/thermal/thermal_zone*"):
        if (zone / "type").read_text().startswith("cv"):
            (zone / "temp").write_text("-256000\n")  # what some releases say instead
    assert not {"cv0", "cv1", "cv2"} & set(Tegra(board).read().temps_c)
    source = Tegra(board, failing(errno.EAGAIN, "thermal_zone2/", "thermal_zone0/temp"))
    assert set(source.read().temps_c) == {"gpu", "soc0", "soc1", "soc2", "tj"}


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES, errno.ENODEV, errno.EIO])
def test_a_board_on_which_nothing_can_be_read_is_all_none(number):
    sample = Tegra(TREES / "jp62", failing(number, "/")).read()
    assert sample == Sample(sample.t_ns, "tegra")


def test_emc_for_root(board):
    debug = board / "sys/kernel/debug"
    for path, value in (("bpmp/debug/clk/emc/rate", 2133000000), ("cactmon/mc_all", 2133000 * 37)):
        (debug / path).parent.mkdir(parents=True)
        (debug / path).write_text(f"{value}\n")
    sample = Tegra(board).read()
    assert (sample.emc_mhz, sample.emc_load_pct) == (2133.0, 37.0)
    (debug / "cactmon/mc_all").write_text("0\n")
    assert Tegra(board).read().emc_load_pct == 0.0
    (debug / "cactmon/mc_all").write_text("99999999999\n")
    assert Tegra(board).read().emc_load_pct is None


def test_what_changes_slowly_is_read_twice_a_second(board):
    clock = Clock()
    source = Tegra(board, clock=clock)
    source.read()
    hwmon = board / "sys/class/hwmon"
    (board / "sys/class/thermal/thermal_zone1/temp").write_text("60000\n")
    (hwmon / "hwmon1/curr1_input").write_text("1000\n")
    (board / "proc/stat").write_text("cpu  7600 120 3000 538800 180 0 72 0 0 0\ncpu0 1100 20 500 90000 30 0 12 0 0 0\n")
    clock.tick(0.1)
    assert (source.read().power_w, source.read().temps_c["gpu"]) == (5.024, 49.625)
    clock.tick(0.5)
    sample = source.read()
    assert sample.temps_c["gpu"] == 60.0 and sample.cpu_load_pct == 25.0 and sample.cpu_loads_pct == (100.0,)


def test_a_sensor_that_is_unplugged_and_comes_back_elsewhere(board):
    clock = Clock()
    source = Tegra(board, clock=clock)
    assert source.read().power_w
    (board / "sys/class/hwmon/hwmon1").rename(board / "elsewhere")
    clock.tick(0.1)
    gone = source.read()
    assert gone.power_w is None and gone.gpu_load_pct == 87.3
    (board / "elsewhere").rename(board / "sys/class/hwmon/hwmon17")
    clock.tick(1)
    assert source.read().power_w == pytest.approx(12.0576)


def test_the_sum_of_shunts_is_no_rail_and_without_vdd_in_there_is_no_total(board):
    (board / "sys/class/hwmon/hwmon1/curr7_input").write_text("3\n")
    (board / "sys/class/hwmon/hwmon1/in1_label").write_text("VDD_GPU\n")
    sample = Tegra(board).read()
    assert set(sample.rails) == {"VDD_CPU_GPU_CV", "VDD_SOC", "VDD_GPU"}
    assert sample.power_w is None and sample.power_of is None


GARBAGE = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"\0", b"-256", b"nan", b"1e9", b"0x10", b"9" * 30, b"1_000", "٣".encode(), b"12 34", b"-1"]),
    st.integers(-(10**20), 10**20).map(lambda n: str(n).encode()),
)


@given(st.lists(GARBAGE, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_garbage_never_raises_and_never_leaves_its_range(contents, random):
    def read(path):
        if path.endswith(("/name", "_label", "/type")) and random.random() < 0.8:
            return files.read_bytes(path)
        return random.choice(contents)

    clock = Clock()
    source = Tegra(TREES / "jp62", read, clock)
    for _ in range(3):
        sample = source.read()
        clock.tick(0.6)
    shares = [sample.gpu_load_pct, sample.cpu_load_pct, sample.emc_load_pct, sample.fan_pct, *sample.cpu_loads_pct]
    assert all(x is None or 0 <= x <= 100 for x in shares)
    assert all(-55 <= t <= 200 for t in sample.temps_c.values())
    assert all(r.power_w is None or 0 <= r.power_w <= 6000 for r in sample.rails.values())
    assert all(x is None or 1 <= x <= 10_000 for x in (sample.gpu_mhz, sample.gpu_max_mhz, sample.emc_mhz))
    assert all(n >= 0 for n in sample.over_current_events.values())


def test_power_modes_by_name():
    for name, current, default in (("jp5", "15W", "15W"), ("jp62", "25W", "25W"), ("jp72", "15W", "25W")):
        modes = nvpmodel.read(files.Tree(TREES / name))
        assert (modes.current, modes.default) == (current, default)
        assert [m.name for m in modes.modes] == list(make.MODES[name][0])
    best = modes.named("MAXN_SUPER")
    assert (best.id, best.cpu_max_mhz, best.gpu_max_mhz, best.emc_max_mhz, best.tpc_mask) == (2, 1728, 1020, 3199, 240)
    assert modes.named("7W").tpc_mask == 254 and modes.named("7W").gpu_max_mhz is None and modes.named("50W") is None


def test_a_mode_file_with_other_lines():
    text = (
        "junk\n<POWER_MODEL ID=x NAME=a>\n< POWER_MODEL ID=7 NAME=b > # comment\nGPU MAX_FREQ 0\nCPU_A78_0 MAX_FREQ 5\n"
    )
    modes, default = nvpmodel.parse_conf(text + "< POWER_MODEL ID=7 NAME=twice >\n< PM_CONFIG DEFAULT=7 >")
    assert [(m.id, m.name, m.gpu_max_mhz, m.cpu_max_mhz) for m in modes] == [(7, "b", None, 0.005)] and default == 7
    assert nvpmodel.read(files.Tree(Path("nowhere"))) == nvpmodel.Modes()


@given(st.text(alphabet="<>= POWER_MODELIDNAMEPM_CONFIGDEFAULT0129W\n#", max_size=300))
def test_mode_files_never_raise(text):
    modes, _ = nvpmodel.parse_conf(text)
    assert len({m.id for m in modes}) == len(modes)
    nvpmodel.parse_status(text)


def test_a_source_by_name():
    assert telemetry.open_source("linux", TREES / "jp62").read().ram_total_bytes
    assert telemetry.open_source("auto", TREES / "jp5").name == "tegra"
    with pytest.raises(BadUsage, match="choose from auto"):
        telemetry.open_source("thermometer")
    with pytest.raises(BadUsage, match="not a folder"):
        telemetry.open_source("jtop", TREES / "jp62")
    with pytest.raises(Missing, match="no Jetson"):
        telemetry.open_source("tegra", Path("nowhere"))
    for name, remedy in (("tegrastats", "source linux"), ("jtop", "jetson-stats"), ("nvidia", "nvidia-ml-py|no card")):
        if shutil.which("tegrastats") is None:
            with pytest.raises(Missing, match=remedy):
                telemetry.open_source(name).close()
