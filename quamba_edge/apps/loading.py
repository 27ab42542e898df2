"""The line that a terminal shows while weights go to a GPU: 4 GB from an SD card take most of a minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

EVERY = 0.1  # seconds between two lines


def bar(out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> Callable[[int, int], None]:
    """For `load(..., progress=)`: rewrites one line of a terminal, and takes it away at the end; nothing elsewhere."""
    screen = out or sys.stderr
    if not screen.isatty():
        return lambda done, total: None
    began, last = clock(), float("-inf")

    def told(done: int, total: int) -> None:
        nonlocal last
        now = clock()
        if done >= total:
            screen.write("\r\x1b[K")
        elif now - last >= EVERY:
            rate = f", {done / (now - began) / 1e9:.2f} GB/s" if now - began > 1 else ""
            screen.write(f"\rloading {done / 1e9:.2f} of {total / 1e9:.2f} GB{rate}\x1b[K")
            last = now
        screen.flush()

    return told
