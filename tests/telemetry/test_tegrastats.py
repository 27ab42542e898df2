"""tegrastats lines of real boards, cut and garbled ones, and a live program that prints them."""

import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quamba_edge.errors import Missing
from quamba_edge.telemetry.tegrastats import Tegrastats, parse_line, parse_log

ROOT = (
    "10-08-2026 04:38:21 RAM 1343/7620MB (lfb 157x4MB) SWAP 165/3810MB (cached 3MB) CPU [0%@1497,0%@729,0%@729,0%@729,0%@729,0%@729] "
    "EMC_FREQ 15%@204 GR3D_FREQ 0%@[305] NVDEC off NVJPG off VIC off OFA off APE 200 cpu@48.562C soc2@46.593C soc0@48.625C gpu@49.625C "
    "tj@49.312C soc1@47.937C VDD_IN 5251mW/8535mW VDD_CPU_GPU_CV 512mW/1944mW VDD_SOC 2720mW/3659mW"
)
USER = (
    "08-23-2026 13:57:46 RAM 3595/7607MB (lfb 1x1MB) SWAP 11/3804MB (cached 0MB) CPU [100%@1728,1%@1728,off,0%@1728,1%@729,1%@729] "
    "GR3D_FREQ 0% cpu@51C soc2@50.562C soc0@51.031C gpu@50.625C tj@51.781C soc1@51.781C cv0@-256C VDD_IN 5832mW/5852mW "
    "VDD_CPU_GPU_CV 1307mW/1327mW VDD_SOC 1468mW/1468mW"
)
JP7 = "RAM 3709/7607MB (lfb 21x4MB) CPU [34%@729,15%@729] EMC_FREQ 5%@2133 GR3D_FREQ 12%@[1300,1300] tj@66.687C VDD_IN 6426mW/6426mW"


def test_a_line_read_by_root():
    sample = parse_line(ROOT, 5)
    assert (sample.t_ns, sample.source, sample.power_of) == (5, "tegrastats", "VDD_IN")
    assert {name: rail.power_w for name, rail in sample.rails.items()} == {
        "VDD_IN": 5.251,
        "VDD_CPU_GPU_CV": 0.512,
        "VDD_SOC": 2.72,
    }  # the momentary column, not the mean beside it
    assert sample.power_w == 5.251 and (sample.emc_load_pct, sample.emc_mhz) == (15.0, 204.0)
    assert (sample.gpu_load_pct, sample.gpu_mhz) == (0.0, 305.0) and sample.cpu_mhz[0] == 1497.0
    assert sample.temps_c["tj"] == 49.312 and len(sample.temps_c) == 6
    assert (sample.ram_used_bytes, sample.ram_total_bytes) == (1343 << 20, 7620 << 20)
    assert (sample.swap_used_bytes, sample.swap_total_bytes) == (165 << 20, 3810 << 20)


def test_what_only_root_sees_is_none():
    sample = parse_line(USER, 0)
    assert sample.emc_mhz is sample.emc_load_pct is sample.gpu_mhz is None and sample.gpu_load_pct == 0.0
    assert sample.cpu_loads_pct == (100.0, 1.0, None, 0.0, 1.0, 1.0) and sample.cpu_load_pct == 20.6
    assert sample.temps_c["cpu"] == 51.0 and "cv0" not in sample.temps_c
    assert sample.ram_available_bytes is None  # its "used" leaves out the page cache: not the same as available


def test_arrays_of_jetpack_7():
    sample = parse_line(JP7, 0)
    assert (sample.gpu_load_pct, sample.gpu_mhz, sample.swap_total_bytes) == (12.0, 1300.0, None)


def test_a_log_has_the_time_of_its_intervals():
    samples = parse_log([ROOT, "RAM 12", USER], interval_ms=100)
    assert [s.t_ns for s in samples] == [0, 200_000_000] and samples[1].power_w == 5.832


@pytest.mark.parametrize("line", ["", "no tegrastats here", "RAM 1/2GB", "VDD_IN 5251mW/8535mW"])
def test_other_lines_are_none(line):
    assert parse_line(line, 0) is None


@given(st.sampled_from([ROOT, USER, JP7]), st.integers(0, 400))
def test_a_cut_line_has_fewer_values_but_no_other_ones(line, at):
    whole, cut = parse_line(line, 0), parse_line(line[:at], 0)
    if cut is None:
        return
    for name in ("gpu_load_pct", "emc_load_pct", "emc_mhz", "power_w", "ram_total_bytes", "ram_used_bytes"):
        assert getattr(cut, name) in (None, getattr(whole, name)), name
    assert (
        dict(cut.temps_c).items() <= dict(whole.temps_c).items()
        and dict(cut.rails).items() <= dict(whole.rails).items()
    )


@given(
    st.lists(st.sampled_from(ROOT.split() + USER.split() + JP7.split()) | st.text(max_size=8), max_size=30),
    st.text(max_size=60),
)
def test_garbage_never_raises_and_never_leaves_its_range(words, noise):
    for line in (" ".join(words), "RAM 1/2MB " + " ".join(words) + noise, noise):
        sample = parse_line(line, 0)
        if sample is None:
            continue
        shares = [sample.gpu_load_pct, sample.emc_load_pct, sample.cpu_load_pct, *sample.cpu_loads_pct]
        assert all(x is None or 0 <= x <= 100 for x in shares)
        assert all(-55 <= t <= 200 for t in sample.temps_c.values())


def program(text):
    return [sys.executable, "-uc", text]


def test_a_live_program():
    source = Tegrastats(program(f"import time\nwhile True: print({ROOT!r}); time.sleep(0.02)"))
    try:
        before = time.monotonic_ns()
        first, second = source.read(), source.read()
        assert before < first.t_ns < second.t_ns <= time.monotonic_ns() and second.power_w == 5.251
    finally:
        source.close()


def test_a_program_that_ends_or_is_not_there():
    source = Tegrastats(program(f"print({ROOT!r})"))
    try:
        assert source.read().power_w == 5.251
        with pytest.raises(Missing, match="has ended"):
            source.read()
    finally:
        source.close()
    with pytest.raises(Missing, match="source linux"):
        Tegrastats(["no-such-tegrastats"])
