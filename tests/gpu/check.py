"""`make gpu-check`: everything that only a GPU can show, in one command, written to docs/gpu.md.

    python -m tests.gpu.check [--only tests,kernels,...] [--models mamba2-2.7b,...] [--recipes w16a16,w4a8,...] [--minutes 9] [--rest]

It also runs without make's .venv, in any Python >= 3.10 with numpy, tokenizers, safetensors, jinja2, pytest and hypothesis.  Steps: cubins for
this GPU, pycuda (compiled here: where there is no network, PIP_FIND_LINKS=FOLDER with its sdist), tests (every op, golden bundles),
sanitizer, perplexity, sampling, kernels, speed, load.  Each step, and each model of kernels and speed, is a process of its own: one that
fails, faults or hangs is named with its reason and does not stop the others.  Each leaves its result in build/gpu-check as soon as it is
done, so that several runs make one document: --minutes ends a run in time, and --rest goes on with what has no result yet.  A target that
is missed is named, too, but only failures make the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
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
LONGEST = 1800  # seconds of one unit where --minutes says nothing: what hangs ends


@dataclass(frozen=True)
class Unit:
    """A step, or a model's part of it."""

    step: str
    model: str = ""

    @property
    def name(self) -> str:
        return self.step + (f".{self.model}" if self.model else "")

    def narrowed(self, check: Check) -> Check:
        if not self.model:
            return check
        return replace(check, models=(self.model,), large=None, failed=check.failed, missed=check.missed)


def units(check: Check, only: tuple[str, ...]) -> list[Unit]:
    """In order; the bundle of a model is written for each, so that nothing large is left behind."""
    found = []
    for step in only:
        models = {"kernels": (*check.models, check.large), "speed": check.models}.get(step, ("",))
        found += [Unit(step, str(m)) for m in models]
    return found


def check_all(check: Check, only: list[str], say: Callable[[str], None] = print) -> bool:
    """Run steps in this process and write the document; whether nothing failed."""
    for step in only:
        run_unit(check, Unit(step), say)
    return written(check, say)


def run_unit(check: Check, unit: Unit, say: Callable[[str], None] = print) -> None:
    """One unit, here; its result is a file of build/gpu-check."""
    began, before = time.monotonic(), (len(check.failed), len(check.missed))
    check.folder.mkdir(parents=True, exist_ok=True)
    say(f"== {unit.name}")
    try:
        lines = STEPS[unit.step][1](unit.narrowed(check))
    except (Exception, SystemExit) as e:  # the others can still be told
        lines = [f"Failed: {type(e).__name__}: {e}", ""]
        check.failed.append(f"{unit.name}: {type(e).__name__}: {e}")
        if not isinstance(e, QuambaError):
            traceback.print_exc()
    failed, missed = check.failed[before[0] :], check.missed[before[1] :]
    keep(check, unit, lines, failed, missed, time.monotonic() - began)
    for line in [*lines, *(f"FAILED {f}" for f in failed), *(f"missed {m}" for m in missed)]:
        say(line)
    say(f"   {time.monotonic() - began:.0f} s")


def keep(check: Check, unit: Unit, lines: list[str], failed: list[str], missed: list[str], seconds: float) -> None:
    result = {"lines": lines, "failed": failed, "missed": missed, "seconds": round(seconds, 1)}
    result |= {"date": date.today().isoformat(), "command": check.command}
    (check.folder / f"{unit.name}.json").write_text(json.dumps(result, indent=1))


def written(check: Check, say: Callable[[str], None] = print) -> bool:
    """The document, of all results that there are; whether none is a failure."""
    parts: dict[str, list[str]] = {}
    failed, missed, head, rows = [], [], {}, []
    for step, (title, _) in STEPS.items():
        files = sorted(f for f in check.folder.glob(f"{step}*.json") if f.stem.split(".")[0] == step)
        for file in files:
            kept = json.loads(file.read_text())
            parts.setdefault(title, []).extend(kept["lines"])
            failed, missed = failed + kept["failed"], missed + kept["missed"]
            head[f"{kept['date']}, `{kept['command']}`"] = None
            state = "FAIL" if kept["failed"] else "target missed" if kept["missed"] else "ok"
            reason = (kept["failed"] or kept["missed"] or [""])[0].replace("|", "/")
            rows.append([file.stem, state, f"{kept['seconds']:.0f}", reason[:200]])
        if not files:
            rows.append([step, "not run", "", ""])
    told = [f"{_machine()}; {_versions()}.", "", *(f"* {line}" for line in head), "", *tables.steps(rows)[:-1]]
    check.document.write_text(tables.whole(told, parts, failed, missed))
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


def _versions() -> str:
    try:
        version, sm, _ = cuda._machine(cuda._driver())
    except (OSError, QuambaError):
        return "no driver"
    return f"sm_{sm}, driver of CUDA {version[0]}.{version[1]}, Python {sys.version.split()[0]}"


def run_apart(check: Check, unit: Unit, command: list[str], seconds: float) -> None:
    """A unit in a process of its own.  What kills it, or keeps it longer than `seconds`, is its failure."""
    result, began = check.folder / f"{unit.name}.json", time.monotonic()
    check.folder.mkdir(parents=True, exist_ok=True)
    result.unlink(missing_ok=True)
    log = check.folder / f"{unit.name}.log"
    with open(log, "w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(seconds)
            ended = f"ended with signal {-code}" if code < 0 else f"ended with status {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # its own children, too: a compiler, a sanitizer
            process.wait()
            ended = f"not done after {seconds:.0f} s"
    said = log.read_text(errors="replace").strip().splitlines()
    print("\n".join(said[-60:]), flush=True)
    if not result.exists():
        tail = " / ".join(said[-3:])
        keep(check, unit, [f"Failed: {ended}.", ""], [f"{unit.name}: {ended}: {tail}"], [], time.monotonic() - began)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = lambda text: tuple(text.split(","))
    parser.add_argument("--only", type=words, default=tuple(STEPS))
    parser.add_argument("--models", type=words, default=Check.models)
    parser.add_argument("--recipes", type=words, default=Check.recipes)
    parser.add_argument("--minutes", type=float, help="start nothing, and stop what runs, after so many")
    parser.add_argument("--rest", action="store_true", help="only what has no result yet, or failed")
    parser.add_argument("--unit", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if unknown := set(given.only) - set(STEPS):
        parser.error(f"no step is called {', '.join(sorted(unknown))}: there are {', '.join(STEPS)}")
    check = Check(ROOT / "build" / "gpu-check", ROOT / "docs" / "gpu.md", models=given.models, recipes=given.recipes)
    check.command = " ".join(["python -m tests.gpu.check", *(sys.argv[1:] if arguments is None else arguments)])
    steps.use_own_pycuda(check)
    if given.unit:
        step, _, model = given.unit.partition(".")
        check.command = os.environ.get("QUAMBA_GPU_CHECK", check.command)
        run_unit(check, Unit(step, model))
        return 0
    try:
        cuda._machine(cuda._driver())
    except (OSError, QuambaError) as e:
        print(f"nothing to check: {e}")
        return 1
    os.environ["QUAMBA_GPU_CHECK"] = check.command
    shared = ["--models", ",".join(given.models), "--recipes", ",".join(given.recipes)]
    began, good = time.monotonic(), True
    for unit in units(check, given.only):
        left = 60 * given.minutes - (time.monotonic() - began) if given.minutes else LONGEST
        if given.rest and _is_done(check.folder / f"{unit.name}.json"):
            continue
        if left < 5:
            print(f"time is up before {unit.name}: the same again with --rest goes on")
            break
        command = [sys.executable, "-u", "-m", "tests.gpu.check", "--unit", unit.name, *shared]
        run_apart(check, unit, command, min(left, LONGEST))
        good = written(check)
    return 0 if good else 1


def _is_done(result: Path) -> bool:
    return result.exists() and not json.loads(result.read_text())["failed"]


if __name__ == "__main__":
    sys.exit(main())
