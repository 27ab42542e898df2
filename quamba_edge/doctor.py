"""What this machine has and lacks, each with the command that fixes it.

It must itself run where almost everything is missing, so it imports nothing that is not in Python until it has looked.
"""

from __future__ import annotations

import platform
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Distribution, what needs it, pip command.  The first four are all that running a bundle takes.
BOARD = ("numpy", "tokenizers", "safetensors", "jinja2")
OPTIONAL = (
    ("torch", "pack and eval of checkpoints", "pip install 'quamba-edge[pack]'"),
    ("huggingface_hub", "checkpoints by Hub name", "pip install 'quamba-edge[pack]'"),
    ("rich", "progress bars", "pip install 'quamba-edge[pack]'"),
)


@dataclass(frozen=True)
class Finding:
    """`state` is "ok", "missing" (bundles do not run without), "absent" (something else does not) or "warn" (they run, but).

    `fix` is the command that mends it; what is ok has one only where there is a choice.
    """

    name: str
    state: str
    found: str
    fix: str | None = None


@dataclass(frozen=True)
class Report:
    ok: bool
    findings: tuple[Finding, ...]
    root: str = "/"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(root: Path = Path("/"), bundle: Path | None = None) -> Report:
    """Look at everything; `ok` when nothing is missing that running a bundle takes, or running this one.

    With another root, only what files below it tell of that machine: Python and its libraries are the running one's.
    """
    findings: list[Finding] = []
    if root == Path("/"):
        findings += [_python(), *(_library(name, "every command", f"pip install {name}", True) for name in BOARD)]
        findings += [_library(name, use, fix, False) for name, use, fix in OPTIONAL]
        findings += [_compiler(), *_backends()]
    if sys.version_info >= (3, 10):  # what follows is written in its language
        try:
            from quamba_edge.apps import machine

            findings += machine.examine(root, bundle)
        except ImportError as e:
            findings.append(_unloaded("machine", "absent", "was not looked at", e))
    return Report(all(f.state != "missing" for f in findings), tuple(findings), str(root))


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < (3, 10):
        return Finding("python", "missing", found, "install Python 3.10 or later: apt install python3")
    return Finding("python", "ok", found)


def _library(name: str, use: str, fix: str, needed: bool) -> Finding:
    # A stub folder or a blocked module counts as not there, and so does one whose files went without its metadata.
    try:
        if find_spec(name) is not None:
            return Finding(name, "ok", metadata.version(name))
    except (metadata.PackageNotFoundError, ValueError, ImportError):
        pass
    return Finding(name, "missing" if needed else "absent", f"not installed; {use} needs it", fix)


def _compiler() -> Finding:
    compiler = next((p for n in ("c++", "g++", "clang++") if (p := shutil.which(n))), None)
    if compiler and shutil.which("make"):
        return Finding("compiler", "ok", compiler)
    lacking = "no C++ compiler" if not compiler else f"{compiler}, but no make"
    return Finding("compiler", "absent", f"{lacking}; building native code needs it", "apt install g++ make")


def _backends() -> list[Finding]:
    try:
        from quamba_edge import backends
    except ImportError as e:
        return [_unloaded("backends", "missing", "cannot be loaded", e)]
    findings = []
    for name in backends.known():
        reason = backends.why_not(name)
        state = "ok" if reason is None else "absent"
        findings.append(Finding(f"backend {name}", state, "ready" if reason is None else reason))
    if not any(f.state == "ok" for f in findings):
        findings.append(
            Finding("backends", "missing", "none can run here", "pip install --force-reinstall quamba-edge")
        )
    return findings


def _unloaded(name: str, state: str, what: str, e: ImportError) -> Finding:
    """What an import failed for.  numpy hides a missing system library under a page of advice: its last lines have it."""
    why = str(e).strip().rpartition("Original error was: ")[2]
    library = re.match(r"(\S+)\.so[.0-9]*: cannot open shared object file", why)
    fix = f"pip install {e.name}" if e.name else None
    if library:  # a Debian of python3 alone has no C++ library; with apt it is there
        fix = "sudo apt install libstdc++6" if library[1] == "libstdc++" else f"apt-file search {library[1]}.so"
    return Finding(name, state, f"{what}: {why}", fix)


def summary(report: Report) -> str:
    """One line each; what is not there with its remedy."""
    lines = [f"{f.state:8}{f.name:20}{f.found}" + (f"  ->  {f.fix}" if f.fix else "") for f in report.findings]
    if report.root == "/":
        verdict = "this machine can run bundles" if report.ok else "this machine cannot run bundles yet"
    else:
        known = "nothing needed is missing" if report.ok else "something needed is missing"
        verdict = f"{known}, as far as the files below {report.root} tell"
    return "\n".join([*lines, verdict])
