"""Statistics of repeats against numbers worked out by hand, and the peak of this process's memory."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from quamba_edge.profile.memory import peak_rss
from quamba_edge.profile.stats import summarize

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
