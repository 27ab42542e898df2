"""The line while weights are loaded."""

import io

from quamba_edge.apps.loading import bar


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_one_line_that_goes_away():
    times = iter([0.0, 0.0, 0.05, 2.0, 2.5])
    screen = Screen()
    told = bar(screen, lambda: next(times))
    for done in (0, 1, 3, 4):
        told(done * 10**9, 4 * 10**9)
    assert screen.getvalue() == "\rloading 0.00 of 4.00 GB\x1b[K\rloading 3.00 of 4.00 GB, 1.50 GB/s\x1b[K\r\x1b[K"


def test_a_log_sees_nothing():
    log = io.StringIO()
    bar(log)(1, 2)
    assert log.getvalue() == ""
