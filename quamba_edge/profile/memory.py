"""How much memory this process holds, and has held at most."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path


def rss(statm: Path = Path("/proc/self/statm")) -> int | None:
    """Resident bytes of this process now, mapped files included as far as they were touched; None where the system does not say."""
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def peak_rss(status: Path = Path("/proc/self/status")) -> int:
    """Largest resident set of this process so far, bytes; mapped files count as far as they were touched.

    Linux keeps it for the program that runs (VmHWM).  getrusage, the way elsewhere, also counts what the parent process
    held when it started this one.
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return 1024 * int(found[1])
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def reset_peak(clear: Path = Path("/proc/self/clear_refs")) -> bool:
    """Let the peak begin anew from what is held now; False where the system cannot."""
    try:
        clear.write_text("5")
    except OSError:
        return False
    return True
