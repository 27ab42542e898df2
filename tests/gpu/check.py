"""`make gpu-check`: everything that only a GPU can show, in one command, written to docs/gpu.md.

    python -m tests.gpu.check [--only tests,kernels,...] [--models mamba2-2.7b,...] [--recipes w16a16,w4a8,...]

Steps: cubins for this GPU (CUDA 12.6's compiler), pycuda (built by pip: where there is no network, PIP_FIND_LINKS=FOLDER with its sdist and
those of its needs), tests (every op, golden bundles), sanitizer, perplexity, sampling, kernels, speed, load.  Each leaves its result in
build/gpu-check as soon as it is done, so that a run that was cut off, or several with --only, make one document.  A step that fails is
named there and does not stop the others; a target that is missed is named, too, but only failures make the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import date
from pathlib import Path

from quamba_edge.backends import cuda
from quamba_edge.errors import QuambaError
from tests.gpu import steps, tables
from tests.gpu.steps import ROOT, Check

STEPS: dict[str, tuple[str, Callable[[Check], list[str]]]] = {
    "cubins": ("Cubins", steps.cubins),
    "pycuda": ("pycuda", steps.pycuda),
    "tests": ("Tests", steps.tests),
    "sanitizer": ("compute-sanitizer", steps.sanitizer),
    "perplexity": ("Perplexity", steps.perplexity),
    "sampling": ("Sampling", steps.sampling),
    "kernels": ("Kernels, random weights of published shapes", steps.kernels),
    "speed": ("Speed, random weights of published shapes", steps.speed),
    "load": ("Loading", steps.loading),
}


def check_all(check: Check, only: list[str], say: Callable[[str], None] = print) -> bool:
    """Run the steps and write the document; whether nothing failed."""
    check.folder.mkdir(parents=True, exist_ok=True)
    for name in only:
        began, before = time.monotonic(), (len(check.failed), len(check.missed))
        say(f"== {name}")
        try:
            lines = STEPS[name][1](check)
        except (Exception, SystemExit) as e:  # the others can still be told
            lines = [f"Failed: {type(e).__name__}: {e}", ""]
            check.failed.append(f"{name}: {type(e).__name__}: {e}")
            if not isinstance(e, QuambaError):
                traceback.print_exc()
        result = {
            "lines": lines,
            "failed": check.failed[before[0] :],
            "missed": check.missed[before[1] :],
            "date": date.today().isoformat(),
        }
        (check.folder / f"{name}.json").write_text(json.dumps(result, indent=1))
        for line in [*lines, *(f"FAILED {f}" for f in result["failed"]), *(f"missed {m}" for m in result["missed"])]:
            say(line)
        say(f"   {time.monotonic() - began:.0f} s")
    parts, failed, missed, days = {}, [], [], set()
    for name, (title, _) in STEPS.items():
        file = check.folder / f"{name}.json"
        if file.exists():
            kept = json.loads(file.read_text())
            parts[title], days = kept["lines"], days | {kept["date"]}
            failed, missed = failed + kept["failed"], missed + kept["missed"]
    head = [f"{_machine()}; {' and '.join(sorted(days))}."]
    check.document.write_text(tables.whole(head, parts, failed, missed))
    say(f"written: {check.document}")
    return not failed


def _machine() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip().splitlines()
    except (OSError, subprocess.TimeoutExpired):
        found = []
    board = Path("/proc/device-tree/model")
    return found[0] if found else board.read_text().strip("\0\n") if board.exists() else "GPU unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = lambda text: tuple(text.split(","))
    parser.add_argument("--only", type=words, default=tuple(STEPS))
    parser.add_argument("--models", type=words, default=Check.models)
    parser.add_argument("--recipes", type=words, default=Check.recipes)
    given = parser.parse_args()
    if unknown := set(given.only) - set(STEPS):
        parser.error(f"no step is called {', '.join(sorted(unknown))}: there are {', '.join(STEPS)}")
    try:
        cuda._machine(cuda._driver())
    except (OSError, QuambaError) as e:
        print(f"nothing to check: {e}")
        return 1
    check = Check(ROOT / "build" / "gpu-check", ROOT / "docs" / "gpu.md", models=given.models, recipes=given.recipes)
    return 0 if check_all(check, list(given.only)) else 1


if __name__ == "__main__":
    sys.exit(main())
