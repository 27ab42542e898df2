"""Every function of every instruction set against scalar formulas (simd_test.cpp); half.h against numpy."""

import platform
import subprocess

import numpy as np
import pytest

from tests.native import build

HERE = build.SETS.get(platform.machine(), [])


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The folder of simd_test_<set>, one for each set of this architecture."""
    if build.why_not():
        pytest.skip(build.why_not())
    folder = tmp_path_factory.mktemp("simd")
    build.make("simd-tests", folder, build.compiler())
    return folder


@pytest.mark.parametrize("instruction_set", HERE)
def test_every_function(instruction_set, programs) -> None:
    if not build.runs_here(instruction_set):
        pytest.skip(f"this CPU has no {instruction_set}")
    ran = subprocess.run([programs / f"simd_test_{instruction_set}"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, f"{instruction_set}: 0 wrong\n"), ran.stdout


def floats() -> np.ndarray:
    """f32: noise of every exponent; every half with the numbers around it and around the ties beside it; the ends."""
    noise = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, dtype=np.uint32)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
    with np.errstate(over="ignore"):
        around = [halves + np.uint32(d % (1 << 32)) for tie in (-0x1000, 0, 0x1000) for d in (tie - 1, tie, tie + 1)]
    subnormal = (np.arange(1 << 12, dtype=np.float64) * 2.0**-26).astype(np.float32).view(np.uint32)
    ends = np.array([0, -0.0, 65504, 65519.996, 65520, 65536, 1e38, np.inf, -np.inf, np.nan], np.float32)
    return np.concatenate([noise, *around, subnormal, ends.view(np.uint32)]).view(np.float32)


def test_halves_are_those_of_numpy(programs) -> None:
    """All 65536 halves to floats, and floats to halves: to nearest, ties to even, subnormals, overflow."""
    values = floats()
    ran = subprocess.run(
        [programs / "simd_test_plain", "halves"],
        input=np.uint32(len(values)).tobytes() + values.tobytes(),
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    found, bits = np.frombuffer(ran[: 4 << 16], np.float32), np.frombuffer(ran[4 << 16 :], np.uint16)
    expected = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    number = ~np.isnan(expected)
    assert (found.view(np.uint32)[number] == expected.astype(np.float32).view(np.uint32)[number]).all()
    assert np.isnan(found[~number]).all()
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(np.float16)
    number = ~np.isnan(values)
    wrong = np.flatnonzero(bits[number] != expected.view(np.uint16)[number])
    assert not len(wrong), f"{len(wrong)} differ, first {values[number][wrong[0]]!r}"
    assert np.isnan(bits.view(np.float16)[~number]).all()
