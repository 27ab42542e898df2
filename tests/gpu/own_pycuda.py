"""pycuda compiled with what a machine has: CUDA's headers from a toolkit or from NVIDIA's wheel, and the driver's libcuda.so.1.

Not as pip does it unasked: without nvcc on the path that finds no headers, it wants libcurand, and it links to libcuda.so, which
machines with only a driver may not have under this name.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from quamba_edge.errors import Missing

NEEDED = "pycuda>=2025.1.2"
# The one header of pycuda's that NVIDIA's wheel has not: three functions of the driver.
PROFILER = """#pragma once
#include <cuda.h>
#ifdef __cplusplus
extern "C" {
#endif
typedef enum CUoutput_mode_enum { CU_OUT_KEY_VALUE_PAIR = 0, CU_OUT_CSV = 1 } CUoutput_mode;
CUresult CUDAAPI cuProfilerInitialize(const char*, const char*, CUoutput_mode);
CUresult CUDAAPI cuProfilerStart(void);
CUresult CUDAAPI cuProfilerStop(void);
#ifdef __cplusplus
}
#endif
"""


def headers() -> list[Path]:
    """Where cuda.h is: of the wheel nvidia-cuda-runtime-cu12 (the extra `cubins`), then of toolkits.

    The wheel's come first: a library that was compiled with CUDA 13's headers asks older drivers for functions that they have not.
    """
    spec = find_spec("nvidia")
    places = [Path(p) / "cuda_runtime" for p in (spec.submodule_search_locations or ())] if spec else []
    places += [Path(p) for p in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_ROOT"), "/usr/local/cuda") if p]
    if nvcc := shutil.which("nvcc"):
        places.append(Path(nvcc).resolve().parents[1])
    return list(dict.fromkeys((p / "include").resolve() for p in places if (p / "include" / "cuda.h").is_file()))


def library() -> Path | None:
    """The libcuda.so.1 that programs of this process would get."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next((Path(x.split()[-1]) for x in lines if "/libcuda.so" in x), None)


def wheel(folder: Path, libcuda: Path, include: Path | None = None) -> Path:
    """A wheel of pycuda in `folder`, which keeps it; Missing says what to do where it cannot be built (minutes of compiling)."""
    if made := sorted((folder / "wheels").glob(f"pycuda-*-cp{sys.version_info[0]}{sys.version_info[1]}-*.whl")):
        return made[-1]
    include = include or next(iter(headers()), None)
    if include is None:
        raise Missing("no cuda.h here, which pycuda is compiled with: pip install nvidia-cuda-runtime-cu12==12.6.77")
    if shutil.which("g++") is None:
        raise Missing("no g++ here, which pycuda is compiled with: apt install g++ python3-dev")
    shim, link, home = (folder / name for name in ("include", "link", "home"))
    for one in (shim, link, home):
        one.mkdir(parents=True, exist_ok=True)
    if not (include / "cudaProfiler.h").is_file():
        (shim / "cudaProfiler.h").write_text(PROFILER)
    (link / "libcuda.so").unlink(missing_ok=True)
    (link / "libcuda.so").symlink_to(libcuda.resolve())
    # pycuda's build reads this file of the home folder.  It gets another home, so that the user's file stays.
    settings = {"CUDA_ENABLE_CURAND": False, "CUDA_INC_DIR": [str(include), str(shim)], "CUDADRV_LIB_DIR": [str(link)]}
    (home / ".aksetup-defaults.py").write_text("".join(f"{k} = {v!r}\n" for k, v in settings.items()))
    environment = {"CFLAGS": "-O1 -g0 -w", **os.environ, "HOME": str(home)}
    own = Path.home() / ".config" / "pip" / "pip.conf"
    if own.is_file():
        environment.setdefault("PIP_CONFIG_FILE", str(own))
    # What builds it is here (setuptools, numpy), and pycuda.driver needs none of pycuda's own needs: nothing but its sources is asked
    # of a network or of PIP_FIND_LINKS.
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    command += ["--no-binary", "pycuda", "-w", str(folder / "wheels"), NEEDED]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ran.returncode:
        lines = [x.strip() for x in (ran.stdout + ran.stderr).splitlines()]
        errors = [x for x in lines if "error" in x.lower()][:3] or lines[-3:]
        raise Missing(
            f"pycuda was not built ({' / '.join(errors)}): where there is no network, PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER, with what "
            "`pip download --no-deps --no-binary :all: pycuda` brought elsewhere"
        )
    return wheel(folder, libcuda, include)
