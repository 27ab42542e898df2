"""Metadata is in pyproject.toml; here is the one thing it cannot say: run csrc/Makefile when a compiler is here.

Native code is called through ctypes, so there is no Python extension to build.  Absent is not broken: without sources or
without a compiler the numpy backend does everything, slower.  A compile that fails stops the build.

    QUAMBA_SKIP_NATIVE=1 pip install .     leave it out
    CXX=clang++ pip install .              another compiler
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent


def reason_to_skip() -> str:
    """Why there is nothing to compile here, or "" when there is."""
    compiler = os.environ.get("CXX", "g++")
    if os.environ.get("QUAMBA_SKIP_NATIVE"):
        return "QUAMBA_SKIP_NATIVE is set"
    if not (ROOT / "csrc" / "Makefile").is_file():
        return "no csrc/Makefile in this source tree"
    return "" if shutil.which(compiler) else f"{compiler} not found (apt install g++)"


class build_native(Command):
    """Compile csrc/ into quamba_edge/_native (of the source tree itself in an editable install)."""

    user_options = [("build-lib=", None, "build directory")]
    editable_mode = False  # set by setuptools

    def initialize_options(self) -> None:
        self.build_lib = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        if reason := reason_to_skip():
            print(
                f"quamba_edge: native kernels skipped, {reason}; the numpy backend works without them, slower",
                flush=True,
            )
            return
        out = (ROOT if self.editable_mode else Path(self.build_lib).resolve()) / "quamba_edge" / "_native"
        make = ["make", f"-j{os.cpu_count() or 1}", "-C", str(ROOT / "csrc"), f"OUT={out}"]
        subprocess.run([*make, "cpu"], check=True)
        if (ROOT / "csrc" / "cubins.py").is_file():  # says itself when there is no compiler for boards
            subprocess.run([*make, "cuda", f"PYTHON={sys.executable}"], check=True)

    def get_source_files(self) -> list[str]:
        return [str(p.relative_to(ROOT)) for p in sorted((ROOT / "csrc").rglob("*")) if p.is_file()]

    def get_outputs(self) -> list[str]:
        folder = Path(self.build_lib) / "quamba_edge" / "_native"
        return [str(p) for p in sorted(folder.rglob("*")) if p.is_file()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Build(build):
    sub_commands = [*build.sub_commands, ("build_native", None)]


class PlatformDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        """Ties the wheel to this kind of machine when it holds compiled code, made now or lying in the tree (jetson/wheels.py)."""
        return not reason_to_skip() or (ROOT / "quamba_edge" / "_native" / "libquamba_cpu.so").is_file()


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        """Any Python 3: the compiled code is called through ctypes and knows no Python."""
        return "py3", "none", super().get_tag()[2]


setup(cmdclass={"bdist_wheel": Wheel, "build": Build, "build_native": build_native}, distclass=PlatformDistribution)
