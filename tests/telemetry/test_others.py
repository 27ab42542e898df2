"""Plain Linux, NVIDIA cards and jetson-stats, the last two through stand-ins of their Python modules."""

import sys
import types
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quamba_edge import telemetry
from quamba_edge.errors import Missing
from quamba_edge.telemetry import linux
from quamba_edge.telemetry.files import Tree
from quamba_edge.telemetry.jtop import from_client
from quamba_edge.telemetry.linux import Linux, Rapl


def write(root, **texts):
    for path, text in texts.items():
        target = root / path.replace("__", "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def rapl(root, *zones):
    for zone, name, count in zones:
        folder = root / "sys/class/powercap" / zone
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in (("name", name), ("energy_uj", count), ("max_energy_range_uj", 262143328850)):
            (folder / file).write_text(f"{text}\n")


def test_rapl_adds_packages_only_and_counts_over_the_end(tmp_path):
    zones = [
        ("intel-rapl:0", "package-0", 262143000000),
        ("intel-rapl:0:0", "core", 5),
        ("intel-rapl:1", "package-1", 1000),
    ]
    rapl(tmp_path, *zones, ("intel-rapl:2", "psys", 7))
    counter = Rapl(Tree(tmp_path))
    assert counter.of == "package-0+package-1" and counter.joules() == 0.0 and counter.watts(0.0, 0) is None
    rapl(tmp_path, ("intel-rapl:0", "package-0", 4671150), ("intel-rapl:1", "package-1", 1001000))
    joules = counter.joules()
    assert joules == pytest.approx(5.0 + 1.0) and counter.watts(joules, 2 * 10**9) == pytest.approx(3.0)
    (tmp_path / "sys/class/powercap/intel-rapl:1/energy_uj").unlink()
    assert counter.joules() is None and counter.watts(None, 3 * 10**9) is None and counter.joules() is None


def test_a_desktop(tmp_path):
    rapl(tmp_path, ("intel-rapl:0", "package-0", 1000000))
    write(tmp_path, proc__stat="cpu  10 0 10 80 0 0 0\ncpu0 10 0 10 80 0 0 0\ncpu2 1 0 1 8 0 0 0\n")
    write(
        tmp_path, proc__meminfo="MemTotal: 1000 kB\nMemAvailable:  400 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\nOdd: 7 MB\n"
    )
    for i, kind in enumerate(("x86_pkg_temp", "acpitz", "acpitz")):
        write(tmp_path, **{f"sys__class__thermal__thermal_zone{i}__type": kind})
        write(tmp_path, **{f"sys__class__thermal__thermal_zone{i}__temp": f"{40 + i}500\n"})
    now = [0]
    source = Linux(tmp_path, clock=lambda: now[0])
    assert source.read().power_w is None  # a mean needs two looks
    rapl(tmp_path, ("intel-rapl:0", "package-0", 21000000))
    write(tmp_path, proc__stat="cpu  20 0 20 100 40 0 0\ncpu0 30 0 20 90 0 0 0\n")
    now[0] = 10**9
    sample = source.read()
    assert (sample.power_w, sample.energy_j, sample.power_of) == (20.0, 20.0, "package-0")
    assert sample.cpu_load_pct == 25.0 and sample.cpu_loads_pct == (75.0,)
    assert sample.temps_c == {"x86_pkg_temp": 40.5, "acpitz": 41.5, "acpitz-2": 42.5}
    assert (sample.ram_used_bytes, sample.swap_total_bytes, sample.nvmap_used_bytes) == (600 << 10, 0, None)


def test_a_machine_that_tells_nothing(tmp_path):
    sample = Linux(tmp_path).read()
    assert sample == telemetry.Sample(sample.t_ns, "linux")


@given(st.text(max_size=200), st.text(alphabet="cpu0123 \n-", max_size=200))
def test_garbage_in_proc_never_raises(a, b):
    for text in (a, b, "cpu0 " + b, "MemTotal: " + b + " kB"):
        assert all(0 <= busy <= total for busy, total in linux.cpu_times(text).values())
        assert all(n >= 0 for n in linux.meminfo(text).values())


class Unsupported(Exception):
    pass


def card(monkeypatch, **answers):
    """A pynvml whose card knows these answers only."""
    module = types.ModuleType("pynvml")
    module.NVMLError, module.NVML_CLOCK_SM, module.NVML_TEMPERATURE_GPU = Unsupported, 1, 0

    def unsupported(*about):
        raise Unsupported("Not Supported")

    for name in ("PowerUsage", "TotalEnergyConsumption", "UtilizationRates", "MemoryInfo", "ClockInfo", "Temperature"):
        answer = answers.get(name)
        value = unsupported if answer is None else lambda *about, a=answer: a
        setattr(module, f"nvmlDeviceGet{name}", value)
    module.nvmlInit = answers.get("init", lambda: None)
    module.nvmlShutdown = lambda: None
    module.nvmlDeviceGetHandleByIndex = lambda i: i
    monkeypatch.setitem(sys.modules, "pynvml", module)


def test_an_nvidia_card(monkeypatch):
    load, memory = SimpleNamespace(gpu=97, memory=40), SimpleNamespace(used=5 << 30, total=80 << 30)
    card(
        monkeypatch,
        PowerUsage=312500,
        TotalEnergyConsumption=9000,
        UtilizationRates=load,
        MemoryInfo=memory,
        ClockInfo=1980,
        Temperature=61,
    )
    source = telemetry.best()
    sample = source.read()
    source.close()
    assert (sample.source, sample.power_w, sample.power_of, sample.energy_j) == ("nvidia", 312.5, "gpu-0", 9.0)
    assert (sample.gpu_load_pct, sample.gpu_mhz, sample.temps_c["gpu-0"]) == (97.0, 1980.0, 61.0)
    assert sample.gpu_memory_used_bytes == 5 << 30 and sample.ram_total_bytes


def test_a_card_that_tells_nothing_and_none_at_all(monkeypatch):
    card(monkeypatch)
    sample = telemetry.open_source("nvidia").read()
    assert sample.power_w is sample.gpu_load_pct is sample.gpu_memory_used_bytes is sample.power_of is None

    def no_driver():
        raise Unsupported("Driver Not Loaded")

    card(monkeypatch, init=no_driver)
    assert telemetry.best().name == "linux"
    with pytest.raises(Missing, match="Driver Not Loaded"):
        telemetry.open_source("nvidia")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(Missing, match=r"quamba-edge\[nvidia\]"):
        telemetry.open_source("nvidia")


RAIL = {
    "type": "INA3221",
    "volt": 5016,
    "curr": 1000,
    "warn": 32760,
    "crit": 4050,
    "power": 5016,
    "online": True,
    "avg": 4000,
}


def client(**changes):
    known = {
        "power": {
            "rail": {"VDD_CPU_GPU_CV": {**RAIL, "power": 1016}, "VDD_SOC": RAIL},
            "tot": {**RAIL, "name": "VDD_IN"},
        },
        "memory": {
            "RAM": {"tot": 7802880, "used": 2048, "free": 1024, "shared": 512, "lfb": 4},
            "SWAP": {"tot": 3900, "used": 10},
            "EMC": {"cur": 2133000, "max": 3199000, "val": 12},
        },
        "gpu": {"gpu": {"status": {"load": 41.5}, "freq": {"cur": 918000, "max": 1020000}}},
        "temperature": {"tj": {"temp": 50.5, "online": True}, "cv0": {"temp": -256, "online": False}},
        "nvpmodel": "25W",
    }
    return SimpleNamespace(**{**known, **changes})


def test_jtop_in_our_units():
    sample = from_client(client(), 9)
    assert (sample.power_w, sample.power_of, sample.rails["VDD_CPU_GPU_CV"].power_w) == (5.016, "VDD_IN", 1.016)
    assert (sample.gpu_load_pct, sample.gpu_mhz, sample.gpu_max_mhz) == (41.5, 918.0, 1020.0)
    assert (sample.emc_mhz, sample.emc_max_mhz, sample.emc_load_pct) == (2133.0, 3199.0, 12.0)
    assert sample.temps_c == {"tj": 50.5} and sample.power_mode == "25W" and sample.ram_total_bytes == 7802880 << 10
    assert sample.power_interval_ms == 500


def test_jtop_without_a_total_or_without_anything():
    summed = {"rail": {"VDD_SOC": RAIL}, "tot": {"power": 9000, "avg": 1}}
    assert from_client(client(power=summed), 0).power_w is None  # a sum of nested rails is no total
    empty = from_client(client(power={}, memory={}, gpu={}, temperature={}, nvpmodel=None), 7)
    assert empty == telemetry.Sample(7, "jtop", power_interval_ms=500)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("The jtop.service is not active. Please run: sudo systemctl restart jtop.service", "systemctl start jtop"),
        ("I can't access jtop.service.\nPlease logout or reboot this board.", "usermod -aG jtop"),
        ("Mismatch version jtop service: [4.3.2] and client: [7.2.0]", "pip install -U jetson-stats"),
        ("Mismatch of Python versions between library and service", "same python3"),
        ("Lost connection with jtop server", "restart jtop.service"),
        ("Error connection", "source tegra"),
    ],
)
def test_jtop_exceptions_are_explained(monkeypatch, said, remedy):
    class Client:
        def __init__(self, interval):
            assert interval >= 0.5

        def start(self):
            raise RuntimeError(said)

    module = types.ModuleType("jtop")
    module.jtop = Client
    monkeypatch.setitem(sys.modules, "jtop", module)
    with pytest.raises(Missing, match=remedy) as error:
        telemetry.open_source("jtop")
    assert "\n" not in str(error.value)
