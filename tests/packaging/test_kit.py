"""The offline kit, from a small index that lies in a folder: nothing here asks the network.

The index holds what makes kits hard: a package with wheels for single Pythons, one that only older Pythons need, one that comes as
sources, and versions that a pin forbids.
"""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("packaging", reason="packaging is not installed: pip install packaging")

from packaging.requirements import Requirement

from jetson import kit, wheels
from jetson.closure import Target, missing, read
from tests.conftest import REPO


def wheel(folder: Path, name: str, version: str, *requires: str, tag: str = "py3-none-any", extras: str = "") -> Path:
    """Write a wheel that holds nothing but its metadata."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    lines += [f"Provides-Extra: {e}" for e in extras.split()] + [f"Requires-Dist: {r}" for r in requires]
    path = folder / f"{name.replace('-', '_')}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def sources(folder: Path, name: str, version: str, *requires: str) -> Path:
    """Write an sdist as PyPI has it."""
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {r}\n" for r in requires
    )
    path = folder / f"{name.replace('-', '_')}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo(f"{path.name[:-7]}/PKG-INFO")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text.encode()))
    return path


ARM = "manylinux_2_17_aarch64.manylinux2014_aarch64"


@pytest.fixture
def ours(tmp_path) -> Path:
    (tmp_path / "dist").mkdir()
    needs = ["numpy>=1.26,<3", 'starlette; extra == "serve"', 'pycuda>=2025; extra == "cuda"', 'torch; extra == "pack"']
    tag = "py3-none-manylinux_2_35_aarch64"
    return wheel(tmp_path / "dist", "quamba-edge", "0.1.0", *needs, tag=tag, extras="serve cuda pack")


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """Where pip looks, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    for version, python in (("2.2.6", "cp310"), ("2.4.6", "cp310"), ("2.4.6", "cp312"), ("2.5.0", "cp312")):
        wheel(folder, "numpy", version, tag=f"{python}-{python}-{ARM}")
    wheel(folder, "starlette", "1.0", "anyio", 'older; python_version < "3.11"', 'never; platform_machine == "x86_64"')
    wheel(folder, "anyio", "4.0", 'newer; python_version >= "3.12"')
    for name in ("older", "newer", "never", "pytools", *kit.TOOLS):
        wheel(folder, name, "61.0")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    pins = tmp_path / "constraints.txt"
    pins.write_text('numpy==2.2.6; python_version < "3.11"\nnumpy==2.4.6; python_version >= "3.11"\n')
    monkeypatch.setattr(kit, "PINS", pins)
    # pip builds an sdist to learn what it needs; the one here is laid down instead.
    monkeypatch.setattr(kit, "sdist", lambda requirement, into: sources(into, "pycuda", "2026.1", "pytools"))
    return folder


def names(folder: Path) -> set[str]:
    return {"-".join(path.name.split("-")[:2]) for path in folder.iterdir()}


def test_a_kit_is_whole(ours, index, tmp_path):
    bundle = tmp_path / "tale.qedge"
    bundle.write_bytes(b"a bundle")
    folder = tmp_path / "kit"
    kit.lay_out(folder, ours, bundle, ["serve", "cuda"], ["3.10", "3.12"])

    both = {"numpy-2.2.6", "numpy-2.4.6"}  # as they are pinned: not 2.4.6 for 3.10, and not 2.5.0
    conditional = {"older-61.0", "newer-61.0"}  # whichever Python runs this
    tools = {f"{name}-61.0" for name in kit.TOOLS}
    rest = {"quamba_edge-0.1.0", "starlette-1.0", "anyio-4.0", "pycuda-2026.1.tar.gz", "pytools-61.0"}
    assert names(folder / "wheels") == both | conditional | tools | rest

    said = dict(line.split("=", 1) for line in (folder / "kit.txt").read_text().splitlines())
    assert said == {
        "version": "0.1.0",
        "wheel": f"wheels/{ours.name}",
        "pythons": "3.10 3.12",
        "extras": "serve cuda",
        "bundle": "bundle/tale.qedge",
    }
    scripts = {
        p.relative_to(REPO / "jetson") for p in (REPO / "jetson").rglob("*") if p.is_file() and p.suffix != ".py"
    }
    scripts = {p for p in scripts if "__pycache__" not in p.parts}
    assert scripts <= {p.relative_to(folder) for p in folder.rglob("*")}
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder).returncode == 0
    listed = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert listed == {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"SHA256SUMS"}


def test_what_cannot_be_brought_is_named(index, tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(index, "starlette", "1.1", "numpy>2.3")
    with pytest.raises(kit.Incomplete, match="(?s)conflict.*starlette 1.1 depends on numpy>2.3.*constraint"):
        kit.download(Target("3.10"), folder, [Requirement("starlette>1")])
    next(index.glob("anyio*")).unlink()
    with pytest.raises(kit.Incomplete, match="anyio"):
        kit.download(Target("3.10"), folder, [Requirement("starlette<=1")])


def test_the_tar_is_the_same_each_time(tmp_path):
    for part in ("one", "two"):
        (tmp_path / part / "wheels").mkdir(parents=True)
        (tmp_path / part / "setup.sh").write_text("#!/bin/sh\n")
        (tmp_path / part / "setup.sh").chmod(0o755 if part == "one" else 0o700)
        (tmp_path / part / "wheels" / "a.whl").write_bytes(b"a")
        kit.tar(tmp_path / part, tmp_path / f"{part}.tar")
    sums = {hashlib.sha256((tmp_path / f"{part}.tar").read_bytes()).hexdigest() for part in ("one", "two")}
    assert len(sums) == 1
    with tarfile.open(tmp_path / "one.tar") as archive:
        modes = {entry.name: entry.mode for entry in archive}
    assert modes == {
        f"{kit.NAME}{p}": m
        for p, m in (("", 0o755), ("/setup.sh", 0o755), ("/wheels", 0o755), ("/wheels/a.whl", 0o644))
    }


@pytest.mark.parametrize(
    "python, lacking",
    [("3.10", {"older"}), ("3.11", set()), ("3.12", {"newer"})],
)
def test_conditions_are_the_boards(python, lacking, tmp_path):
    wheel(
        tmp_path, "app", "1", 'older; python_version < "3.11"', 'fast; extra == "fast" and platform_machine == "x86_64"'
    )
    wheel(tmp_path, "lib", "1", 'newer; python_version >= "3.12"')
    found = missing(Target(python), tmp_path, [Requirement("app[fast]"), Requirement("lib")])
    assert {r.name for r in found} == lacking


@pytest.mark.parametrize(
    "tag, fits",
    [
        ("py3-none-any", True),
        (f"cp310-cp310-{ARM}", True),
        (f"cp38-abi3-{ARM}", True),
        ("py3-none-manylinux_2_35_aarch64", True),
        ("cp312-cp312-manylinux_2_17_aarch64", False),
        ("cp310-cp310-manylinux_2_17_x86_64", False),
        ("cp310-cp310-manylinux_2_36_aarch64", False),
        ("cp310-cp310-musllinux_1_2_aarch64", False),
    ],
)
def test_only_wheels_that_the_board_takes_count(tag, fits, tmp_path):
    wheel(tmp_path, "thing", "1", tag=tag)
    assert (missing(Target("3.10"), tmp_path, [Requirement("thing")]) == []) == fits


def test_an_older_version_does_not_do(tmp_path):
    wheel(tmp_path, "thing", "1.9")
    assert missing(Target("3.10"), tmp_path, [Requirement("thing>=2")]) == [Requirement("thing>=2")]


def test_pins_are_those_of_the_boards_python():
    text = 'a==1; python_version < "3.11"\na==2; python_version >= "3.11"\n# words\nb==3  # more\n'
    assert kit.constraints(Target("3.10"), text).split() == ["a==1", "b==3"]
    assert kit.constraints(Target("3.12"), text).split() == ["a==2", "b==3"]


def test_the_oldest_system_is_one_thing():
    from jetson import closure

    assert closure.NEWEST_GLIBC == max(wheels.FLOORS)


def test_a_bundle_that_is_not_there_is_said_before_any_work(tmp_path):
    command = [sys.executable, REPO / "jetson" / "kit.py", "--bundle", "none.qedge", "--out", tmp_path / "kit"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (1, "none.qedge is not there: BUNDLE=FILE.qedge\n")


def test_metadata_of_sources_and_wheels_is_read_alike(tmp_path):
    found = read(sources(tmp_path, "pycuda", "2026.1", "mako")), read(wheel(tmp_path, "pycuda", "2026.1", "mako"))
    assert [(d.name, d.version, d.requires) for d in found] == [("pycuda", "2026.1", (Requirement("mako"),))] * 2
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="neither a wheel"):
        read(tmp_path / "notes.txt")
