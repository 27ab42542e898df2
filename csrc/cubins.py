"""Compiles csrc/cuda to cubins for boards: one file each kernel source, and cubins.json, which says what they are.

    python csrc/cubins.py OUT [--arch 87] [--any]          or: make -C csrc cuda OUT=...

Boards with JetPack 6 have CUDA 12.6, and their driver refuses what CUDA 13 writes (another ELF, quamba_edge/backends/cubin.py), while
newer drivers take both.  So CUDA 12 compiles: nvcc if it is one of 12.0 to 12.6, else NVRTC, which needs no toolkit installed:

    pip install nvidia-cuda-nvrtc-cu12==12.6.85 nvidia-cuda-runtime-cu12==12.6.77

--any takes whatever nvcc is here: for a card that the kernels are only checked on, whose driver is as new as its toolkit.

No GPU is needed.  Without either this writes nothing, says so and ends with status 3; a kernel that does not compile is status 1.
What is up to date is not compiled again.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

try:
    from quamba_edge.backends import cubin, launch
except ImportError as e:  # a build environment of pip's has no numpy
    print(f"cubins skipped: {e} in {sys.executable}, which checks them: `make native` has all it needs")
    sys.exit(3)

NEWEST = (12, 6)  # what JetPack 6 loads
WHEELS = "pip install nvidia-cuda-nvrtc-cu12==12.6.85 nvidia-cuda-runtime-cu12==12.6.77"
# NVRTC has no C library.
STDINT = b"""typedef signed char int8_t; typedef unsigned char uint8_t; typedef short int16_t; typedef unsigned short uint16_t;
typedef int int32_t; typedef unsigned int uint32_t; typedef long long int64_t; typedef unsigned long long uint64_t;
#define INFINITY __int_as_float(0x7f800000)
"""


class Absent(Exception):
    """No compiler that may be used, and what to do."""


class Broken(Exception):
    """What the compiler said."""


def suits(version: tuple[int, int], newest: tuple[int, int] = NEWEST) -> bool:
    return (12, 0) <= version <= newest


class Nvcc:
    """The toolkit's driver."""

    def __init__(self, path: str):
        said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
        match = re.search(r"release (\d+)\.(\d+)", said)
        self.path, self.version = path, (int(match[1]), int(match[2])) if match else (0, 0)
        self.name = f"nvcc {self.version[0]}.{self.version[1]}"

    def compile(self, source: Path, arch: int, out: Path) -> str:
        command = [self.path, "-cubin", f"-arch=sm_{arch}", "-std=c++17", "-Xptxas", "-v", str(source), "-o", str(out)]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            raise Broken(ran.stderr)
        return ran.stderr


class Nvrtc:
    """The compiler as a library, from pip's wheels."""

    def __init__(self) -> None:
        spec = find_spec("nvidia")
        folders = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
        found = [p for f in folders for p in sorted(f.glob("cuda_nvrtc/lib/libnvrtc.so.12"))]
        headers = [p for f in folders for p in sorted(f.glob("cuda_runtime/include/cuda_fp16.h"))]
        if not found or not headers:
            raise Absent(f"no NVRTC of CUDA 12 in this Python: {WHEELS}")
        self.include = headers[0].parent
        self.native = ctypes.CDLL(str(found[0]))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self.native.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = major.value, minor.value
        self.name = f"NVRTC {self.version[0]}.{self.version[1]}"

    def compile(self, source: Path, arch: int, out: Path) -> str:
        program = ctypes.c_void_p()
        texts, names = (ctypes.c_char_p * 1)(STDINT), (ctypes.c_char_p * 1)(b"stdint.h")
        text, name = source.read_bytes(), str(source).encode()
        self._check(self.native.nvrtcCreateProgram(ctypes.byref(program), text, name, 1, texts, names))
        flags = [f"--gpu-architecture=sm_{arch}", "--std=c++17", "--ptxas-options=-v", f"-I{self.include}"]
        flags += [f"-I{HERE / 'cuda'}", f"-I{HERE / 'common'}"]
        given = (ctypes.c_char_p * len(flags))(*(f.encode() for f in flags))
        failed = self.native.nvrtcCompileProgram(program, len(flags), given)
        log = self._read(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog").rstrip(b"\0").decode()
        if failed:
            raise Broken(log)
        out.write_bytes(self._read(program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN"))
        self.native.nvrtcDestroyProgram(ctypes.byref(program))
        return log

    def _read(self, program: ctypes.c_void_p, size_of: str, get: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self.native, size_of)(program, ctypes.byref(size)))
        text = ctypes.create_string_buffer(size.value)
        self._check(getattr(self.native, get)(program, text))
        return text.raw

    def _check(self, status: int) -> None:
        if status:
            self.native.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise Broken(f"NVRTC: {self.native.nvrtcGetErrorString(status).decode()}")


def compiler(newest: tuple[int, int] = NEWEST) -> Nvcc | Nvrtc:
    """nvcc if it is of CUDA 12 and no newer than boards, else NVRTC; Absent says what was found instead."""
    reasons = []
    path = os.environ.get("NVCC") or shutil.which("nvcc")
    if path:
        nvcc = Nvcc(path)
        if suits(nvcc.version, newest):
            return nvcc
        reasons.append(
            f"{path} is CUDA {nvcc.version[0]}.{nvcc.version[1]}, not 12.0 to 12.6 (JetPack 6 refuses what newer ones write)"
        )
    try:
        nvrtc = Nvrtc()
        if suits(nvrtc.version):
            return nvrtc
        reasons.append(f"{nvrtc.name} is newer than the CUDA 12.6 of JetPack 6: {WHEELS}")
    except Absent as e:
        reasons.append(str(e))
    raise Absent("; ".join(reasons))


def resources(log: str) -> dict[str, dict[str, int]]:
    """{kernel: registers, spilled bytes, static shared bytes} from what ptxas -v says."""
    found: dict[str, dict[str, int]] = {}
    kernel = ""
    for line in log.splitlines():
        if match := re.search(r"(?:Compiling entry function|Function properties for) '?(\w+)'?", line):
            kernel = match[1]
            found.setdefault(kernel, {})
        for what, pattern in (
            ("spilled", r"(\d+) bytes spill stores"),
            ("registers", r"Used (\d+) registers"),
            ("static_shared", r"(\d+) bytes smem"),
        ):
            if match := re.search(pattern, line):
                found[kernel][what] = int(match[1])
    return found


def digest_of_sources() -> str:
    """sha256 over every file that a cubin depends on."""
    paths = [*HERE.glob("cuda/*.cu"), *HERE.glob("common/*"), Path(__file__)]
    whole = b"".join(p.name.encode() + p.read_bytes() for p in sorted(paths))
    return hashlib.sha256(whole).hexdigest()


def up_to_date(folder: Path, toolkit: str, sources: str) -> dict[str, Any] | None:
    """What cubins.json says, if it is of these sources and this toolkit and the files are as it says."""
    try:
        record = json.loads((folder / "cubins.json").read_text())
        same = (record["toolkit"], record["sources"]) == (toolkit, sources)
        for stem, file in record["files"].items():
            same &= hashlib.sha256((folder / f"{stem}.cubin").read_bytes()).hexdigest() == file["sha256"]
    except (OSError, ValueError, KeyError):
        return None
    return record if same else None


def build(out: Path, arch: int, newest: tuple[int, int] = NEWEST) -> dict[str, Any]:
    """Compile everything into OUT/sm_<arch>; what cubins.json then says.  Nothing half-made is left under a final name."""
    used, sources = compiler(newest), digest_of_sources()
    folder = out / f"sm_{arch}"
    folder.mkdir(parents=True, exist_ok=True)
    if record := up_to_date(folder, used.name, sources):
        return record
    (folder / "cubins.json").unlink(missing_ok=True)
    files = {}
    for source in sorted((HERE / "cuda").glob("*.cu")):
        target, fresh = folder / f"{source.stem}.cubin", folder / f"{source.stem}.cubin.new"
        log = used.compile(source, arch, fresh)
        kernels = resources(log)
        if sorted(kernels) != sorted(launch.kernels(source.stem)):
            raise Broken(
                f"{source.name} has kernels {sorted(kernels)}, backends/launch.py says {launch.kernels(source.stem)}"
            )
        if why := cubin.refused(cubin.read(fresh), newest, arch):
            raise Broken(f"{source.name}: {why}")
        fresh.replace(target)
        digest = hashlib.sha256(target.read_bytes()).hexdigest()
        files[source.stem] = {"sha256": digest, "bytes": target.stat().st_size, "kernels": kernels}
        print(f"  {target.name} ({used.name})", flush=True)
    record = {"toolkit": used.name, "arch": arch, "sources": sources, "files": files}
    (folder / "cubins.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description="compile csrc/cuda to cubins")
    parser.add_argument("out", type=Path)
    parser.add_argument("--arch", type=int, default=87)
    parser.add_argument("--any", action="store_true", help="whatever nvcc is here")
    given = parser.parse_args()
    try:
        build(given.out, given.arch, (99, 0) if given.any else NEWEST)
    except Absent as e:
        print(f"cubins skipped: {e}", flush=True)
        return 3
    except Broken as e:
        print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
