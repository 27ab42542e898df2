"""Statistics of repeats against numbers worked out by hand, and the peak of this process's memory."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from quamba_edge.profile.memory import peak_rss, reset_peak
from quamba_edge.profile.stats import change, summarize, t_quantile

REPO = Path(__file__).resolve().parents[2]


def test_worked_by_hand():
    s = summarize([4.0, 1.0, 2.0, 3.0, 10.0])
    assert (s.median, s.mean, s.n) == (3.0, 4.0, 5)
    assert math.isclose(s.p95, 4 + 0.8 * 6)  # position 0.95 * 4 = 3.8 among the sorted
    assert math.isclose(s.stddev, math.sqrt((0 + 9 + 4 + 1 + 36) / 4))


def test_one_value_has_no_spread():
    s = summarize([2.5])
    assert (s.median, s.p95, s.mean, s.stddev, s.n) == (2.5, 2.5, 2.5, None, 1)


def test_no_values_are_a_mistake_of_ours():
    with pytest.raises(AssertionError):
        summarize([])


def test_peak_rss_is_of_this_process_alone():
    """A process started by one that holds 64 MiB has not held them."""
    code = "from quamba_edge.profile.memory import peak_rss as p; a = p(); b = bytes([1]) * (48 << 20); print(a, p())"
    held = bytes([1]) * (64 << 20)
    told = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True).stdout
    before, after = map(int, told.split())
    assert len(held) > before and after - before > 40 << 20


def test_peak_rss_reads_the_kernels_line_or_asks_getrusage(tmp_path):
    (tmp_path / "status").write_text("Name:\tpython\nVmPeak:\t  999 kB\nVmHWM:\t  1234 kB\nVmRSS:\t 1000 kB\n")
    assert peak_rss(tmp_path / "status") == 1234 * 1024
    assert peak_rss(tmp_path / "absent") > 1 << 20


def test_the_interval_of_a_median_holds_it_and_needs_three_values():
    values = [10.0, 11.0, 12.0, 13.0, 30.0]
    low, high = summarize(values).ci95
    assert 10 <= low <= 12 <= high <= 30 and summarize(values).ci95 == (low, high)
    assert summarize(values[:2]).ci95 is None
    wide, narrow = (summarize(list(range(0, n))).ci95 for n in (10, 1000))
    assert (wide[1] - wide[0]) / 10 > 3 * (narrow[1] - narrow[0]) / 1000


@pytest.mark.parametrize("freedom, table", [(1, 12.706), (2, 4.303), (4.5, 2.659), (10, 2.228), (100, 1.984)])
def test_students_quantiles_are_those_of_the_tables(freedom, table):
    assert t_quantile(0.975, freedom) == pytest.approx(table, abs=0.002)


def test_a_change_worked_by_hand():
    e = math.e
    found = change(
        [1.0, e, e**2], [e, e**2, e**3]
    )  # logarithms 0 1 2 against 1 2 3: variances 1, four degrees of freedom
    half = 2.776 * math.sqrt(2 / 3)
    assert math.isclose(found.share, e - 1) and not found.certain
    assert found.low == pytest.approx(math.expm1(1 - half), abs=1e-3)
    assert found.high == pytest.approx(math.expm1(1 + half), rel=1e-3)
    assert change([2.0, 2.0, 2.0], [1.0, 1.0, 1.0]).certain and change([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]).share == 0
    assert change([1.0, 2.0], [1.0, 2.0, 3.0]) is None and change([0.0, 1.0, 2.0], [1.0, 2.0, 3.0]) is None


def test_the_peak_can_begin_anew(tmp_path):
    assert reset_peak(tmp_path / "clear") and (tmp_path / "clear").read_text() == "5"
    assert not reset_peak(tmp_path / "absent" / "clear")
