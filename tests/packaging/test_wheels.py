"""The wheels: what is in them, what they need of a system, and that one installs, imports and computes on every Python we promise.

The workstation's wheel is built once for all tests here; the board's takes a cross-compiler and a minute, so it is slow.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from jetson import wheels
from quamba_edge import __version__
from tests.conftest import REPO

HERE = platform.machine()
PYTHONS = ("3.10", "3.11", "3.12")


def build(machine: str, folder: Path) -> Path:
    missing = [tool for tool in ("make", "readelf") if shutil.which(tool) is None]
    if missing or machine not in wheels.MACHINES:
        pytest.skip(f"no wheel can be built here: {', '.join(missing) or machine}")
    try:
        wheels.compiler(machine)
        return wheels.build([machine], folder)[0]
    except wheels.Refused as e:
        if "apt install" in str(e) or "cubins skipped" in str(e):
            pytest.skip(str(e))
        raise


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build(HERE, tmp_path_factory.mktemp("dist"))


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        return set(archive.namelist())


def text(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"quamba_edge-{__version__}.dist-info/{name}").decode()


def expected() -> set[str]:
    """Every module of the package, the library, a cubin for each kernel source, and what a wheel says of itself."""
    modules = {str(p.relative_to(REPO)) for p in (REPO / "quamba_edge").rglob("*.py")}
    kernels = {f"quamba_edge/_native/sm_87/{p.stem}.cubin" for p in (REPO / "csrc" / "cuda").glob("*.cu")}
    native = {"quamba_edge/_native/libquamba_cpu.so", "quamba_edge/_native/sm_87/cubins.json"}
    named = "METADATA WHEEL RECORD top_level.txt entry_points.txt licenses/LICENSE".split()
    return modules | kernels | native | {f"quamba_edge-{__version__}.dist-info/{name}" for name in named}


def test_it_holds_the_package_and_nothing_else(wheel):
    assert contents(wheel) == expected()


def test_what_it_says_of_itself(wheel):
    about = text(wheel, "WHEEL")
    tag = re.search(r"^Tag: (.*)$", about, re.MULTILINE)[1]
    assert wheel.name == f"quamba_edge-{__version__}-{tag}.whl"
    assert re.fullmatch(rf"py3-none-manylinux_2_\d+_{HERE}", tag) and "Root-Is-Purelib: false" in about
    assert text(wheel, "entry_points.txt").split("\n")[1] == "quamba-edge = quamba_edge.cli:main"
    metadata = text(wheel, "METADATA")
    assert f"\nVersion: {__version__}\n" in metadata and "\nRequires-Python: >=3.10\n" in metadata
    needs = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert sorted(re.findall(r": ([a-z0-9]+)", "\n".join(needs))) == ["jinja2", "numpy", "safetensors", "tokenizers"]


@pytest.mark.slow
def test_the_same_sources_give_the_same_bytes(wheel, tmp_path):
    assert build(HERE, tmp_path / "again").read_bytes() == wheel.read_bytes()


def python(version: str) -> str:
    """A working interpreter of that version, from PATH or from pyenv; skips where there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{version}"), *map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))]
    for path in filter(None, found):
        if subprocess.run([path, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:
            return path
    pytest.skip(f"no Python {version} here")


def installed(wheel: Path, version: str, folder: Path) -> Path:
    """A new environment with the wheel and nothing else; its Python."""
    subprocess.run([python(version), "-m", "venv", folder], check=True)
    command = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--no-index", "--no-deps", wheel]
    subprocess.run(command, check=True, env={k: v for k, v in os.environ.items() if not k.startswith("PIP_")})
    return folder / "bin" / "python"


ASK = """
import ctypes, os, quamba_edge
folder = os.path.dirname(quamba_edge.__file__)
library = ctypes.CDLL(os.path.join(folder, "_native", "libquamba_cpu.so"))
library.quamba_instruction_sets.restype = ctypes.c_char_p
print(quamba_edge.__version__, folder, library.quamba_instruction_sets().decode())
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", PYTHONS)
def test_it_installs_and_its_library_loads(wheel, version, tmp_path):
    interpreter = installed(wheel, version, tmp_path / "venv")
    said = subprocess.run([interpreter, "-I", "-c", ASK], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    version_said, folder, *sets = said.stdout.split()
    assert version_said == __version__ and Path(folder).is_relative_to(tmp_path) and sets[-1] == "plain"


@pytest.mark.slow
def test_the_command_runs_a_bundle(wheel, tmp_path):
    """With the dependencies of the Python that runs this test, which are of its version only."""
    interpreter = installed(wheel, f"{sys.version_info[0]}.{sys.version_info[1]}", tmp_path / "venv")
    site = next((tmp_path / "venv" / "lib").glob("*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    bundle = REPO / "tests" / "golden" / "mamba2.qedge"
    command = [interpreter.parent / "quamba-edge", "verify", bundle, "--backend", "cpu"]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.slow
@pytest.mark.skipif(HERE == "aarch64", reason="this machine is one: the tests above had its wheel")
def test_the_wheel_for_a_board(tmp_path):
    wheel = build("aarch64", tmp_path / "dist")
    assert contents(wheel) == expected()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    elf = wheels.read_elf(tmp_path / "quamba_edge" / "_native" / "libquamba_cpu.so")
    assert elf.machine == "aarch64"
    assert wheel.name.endswith(f"-py3-none-manylinux_2_{wheels.floor(elf)}_aarch64.whl")
    assert elf.versions["GLIBC"] <= (2, 35)


def elf(**versions: tuple[int, ...]) -> wheels.Elf:
    return wheels.Elf("aarch64", ("libstdc++.so.6", "libc.so.6"), versions)


@pytest.mark.parametrize(
    "found, minor",
    [
        (elf(GLIBC=(2, 17)), 17),
        (elf(GLIBC=(2, 17), GLIBCXX=(3, 4, 28)), 31),
        (elf(GLIBC=(2, 34)), 34),
        (elf(GLIBC=(2, 2, 5), GLIBCXX=(3, 4, 30), GCC=(3, 0)), 35),
    ],
)
def test_the_tag_follows_the_newest_symbol(found, minor):
    assert wheels.floor(found) == minor


@pytest.mark.parametrize(
    "found, says",
    [
        (elf(GLIBC=(2, 36)), "GLIBC_2.36, newer than Ubuntu 22.04"),
        (elf(GLIBC=(2, 17), GLIBCXX=(3, 4, 32)), "GLIBCXX_3.4.32, newer than Ubuntu 22.04"),
        (wheels.Elf("aarch64", ("libgomp.so.1",), {}), "libgomp.so.1"),
    ],
)
def test_what_a_board_lacks_is_refused(found, says):
    with pytest.raises(wheels.Refused, match=re.escape(says)):
        wheels.floor(found)


def test_a_missing_compiler_is_named_with_its_package(monkeypatch):
    monkeypatch.setenv("PATH", "")
    other = next(m for m in wheels.MACHINES if m != HERE)
    with pytest.raises(wheels.Refused, match=rf"apt install g\+\+-{other.replace('_', '-')}-linux-gnu"):
        wheels.compiler(other)


def newer_than_3_10(*paths: Path) -> str:
    """What a tool finds there of Python 3.11 or later: syntax, modules, functions; "" where there is nothing."""
    pytest.importorskip("vermin", reason="vermin is not installed: pip install vermin")
    command = [sys.executable, "-c", "from vermin import main; main()", "-q", "--no-tips", "--violations", "-t=3.10-"]
    said = subprocess.run([*command, *paths], capture_output=True, text=True)
    assert (said.returncode == 0) == (said.stdout == ""), said.stderr
    return said.stdout


def test_nothing_is_newer_than_python_3_10(tmp_path):
    assert newer_than_3_10(*(REPO / tree for tree in ("quamba_edge", "demos", "jetson"))) == ""
    (tmp_path / "newer.py").write_text("import tomllib\n")
    assert "tomllib" in newer_than_3_10(tmp_path / "newer.py")
