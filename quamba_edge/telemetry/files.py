"""Small files under a root folder: sysfs, /proc and /etc as they are, or as a recorded tree that a test hands in.

Whatever a file holds, or whatever error reading it gives (a sensor that is powered down answers EAGAIN, an unplugged one ENODEV),
the answer is the value or None.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

LARGEST = 1 << 20  # bytes read of any file: /proc/stat of a large server is the longest that is wanted
PAGE = 4096  # longest value in sysfs

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")  # int() would also take "1_000" and digits of other scripts


def read_bytes(path: str) -> bytes:
    """The file's bytes, the first megabyte of them.  Raises OSError."""
    # O_NONBLOCK, so that a pipe in a strange place cannot hold the sampler up.
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        data = os.read(file, PAGE)
        # A value in sysfs is whole in its first read, and asking for more would make the sensor measure again.
        if "/sys/" not in path:
            while len(data) < LARGEST and (more := os.read(file, LARGEST // 16)):
                data += more
        return data
    finally:
        os.close(file)


class Tree:
    """Files below `root`, named by their path from "/"; `read` (path to bytes, or OSError) stands in for the disk in tests."""

    def __init__(self, root: Path = Path("/"), read: Callable[[str], bytes] = read_bytes):
        self.root, self._read = Path(root), read
        self._prefix = str(self.root).rstrip("/")

    def text(self, path: str) -> str | None:
        """The file's text without outer white space and NULs; None where it cannot be read or is no text."""
        try:
            return self._read(self._prefix + path).decode().strip("\0 \t\r\n")
        except (OSError, ValueError):
            return None

    def integer(self, path: str) -> int | None:
        """The one integer that the file holds, else None."""
        found = self.text(path)
        return int(found) if found is not None and _INTEGER.fullmatch(found) else None

    def glob(self, pattern: str) -> list[str]:
        """Paths that exist and fit, sorted; numbers in names in their order (zone2 before zone10)."""
        try:
            found = [str(p)[len(self._prefix) :] for p in self.root.glob(pattern.lstrip("/"))]
        except OSError:
            return []
        return sorted(found, key=lambda p: [int(w) if w.isdecimal() else w for w in re.split(r"([0-9]+)", p)])

    def exists(self, path: str) -> bool:
        try:
            return Path(self._prefix + path).exists()
        except OSError:
            return False


def within(value: int | None, low: int, high: int) -> int | None:
    """The value, or None where no such sensor can show it: drivers answer -256 or 65535 for "nothing"."""
    return value if value is not None and low <= value <= high else None
