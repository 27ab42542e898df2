"""pycuda itself, on a libcuda.so.1 whose GPU is the emulator (csrc/emu/driver): built here, once, in build/driver."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from tests.cuda.emulator import build
from tests.gpu import own_pycuda
from tests.native.build import CSRC

ROOT = CSRC.parent
FOLDER = ROOT / "build" / "driver"
# Calls a program with the cubins of that folder: quamba_edge/_native may have none, or those of another GPU.
PROGRAM = """import sys
from pathlib import Path
from quamba_edge.backends import cuda
cuda.CUBINS = Path(sys.argv.pop(1))
"""


@cache
def declarations(include: Path) -> dict[str, tuple[str, str]]:
    """Of every function that a cuda.h declares, under the name by which libcuda exports it: (result, arguments)."""
    command = ["g++", "-E", "-P", "-x", "c++", f"-I{include}", "-"]
    text = subprocess.run(command, input="#include <cuda.h>\n", capture_output=True, text=True, check=True).stdout
    found = re.findall(r"(CUresult)\s+(cu[A-Z]\w*)\s*\(([^()]*)\)\s*;", text)
    return {name: (result, " ".join(arguments.split())) for result, name, arguments in found}


def libcuda() -> Path:
    """The folder that has it."""
    include = own_pycuda.headers()[0]
    FOLDER.mkdir(parents=True, exist_ok=True)
    names = [*declarations(include), "cuProfilerInitialize", "cuProfilerStart", "cuProfilerStop"]
    lines = ["int quamba_absent(const char* name);"]
    lines += [f'__attribute__((weak)) int {n}(void) {{ return quamba_absent("{n}"); }}' for n in names]
    text = "\n".join([*lines, ""])
    if not (FOLDER / "absent.c").is_file() or (FOLDER / "absent.c").read_text() != text:
        (FOLDER / "absent.c").write_text(text)
    os.environ["CUDA_INCLUDE"] = str(include)
    return build(FOLDER, target="driver").parent


def pycuda() -> Path:
    """A folder for PYTHONPATH with pycuda, whose driver part needs nothing else; Missing where it cannot be built."""
    site = FOLDER / f"site-{sys.version_info[0]}.{sys.version_info[1]}"
    if not (site / "pycuda").is_dir():
        made = own_pycuda.wheel(FOLDER / "pycuda", libcuda() / "libcuda.so.1")
        shutil.unpack_archive(made, site, "zip")
    return site


def cubins(arch: int = 87) -> Path:
    """A folder with cubins for that GPU."""
    out = FOLDER / "cubins"
    subprocess.run(
        [sys.executable, str(CSRC / "cubins.py"), str(out), "--arch", str(arch)], check=True, stdout=subprocess.DEVNULL
    )
    return out


class Ran:
    """What a process on the emulated GPU said, and what its driver counted: `calls`, `complaints`, `held` bytes, contexts `retained`."""

    def __init__(self, program: str, *arguments: str, gpu: str = "", arch: int = 87, timeout: int = 600):
        log = FOLDER / f"log-{os.getpid()}"
        log.unlink(missing_ok=True)
        environment = os.environ | {
            "LD_LIBRARY_PATH": f"{libcuda()}:{os.environ.get('LD_LIBRARY_PATH', '')}",
            "PYTHONPATH": f"{pycuda()}:{ROOT}",
            "QUAMBA_EMULATED_GPU": f"{gpu} sm={arch} log={log}",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", PROGRAM + program, str(cubins(arch)), *arguments]
        ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
        self.rc, self.out, self.err = ran.returncode, ran.stdout, ran.stderr
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        self.complaints = [x[2:] for x in lines if x.startswith("! ")]
        counts = dict(x.rsplit(" ", 1) for x in lines if not x.startswith("! "))
        self.held, self.retained = int(counts.pop("held", -1)), int(counts.pop("retained", -1))
        self.calls = {name: int(count) for name, count in counts.items()}

    @property
    def last(self) -> dict:
        """The JSON of the last line."""
        return json.loads(self.out.splitlines()[-1])


def run(*arguments: str, gpu: str = "", arch: int = 87) -> Ran:
    """quamba-edge with these arguments."""
    return Ran("from quamba_edge.cli import main\nsys.exit(main(sys.argv[1:]))", *arguments, gpu=gpu, arch=arch)
