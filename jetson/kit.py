"""Collects everything a board needs into one folder and one tar, so that it can be set up without a network: `make offline-kit`.

    python jetson/kit.py [--out build/kit] [--extras "demo"] [--bundle FILE.qedge] [--python 3.10 --python 3.12]

In the folder: setup.sh and what it uses, our wheel for aarch64, wheels of every dependency for the Pythons of JetPack 6 (3.10) and 7
(3.12) and of Debian 12 (3.11), a bundle, kit.txt which says what there is, and SHA256SUMS which setup.sh checks.

Which packages are needed is asked twice.  pip resolves versions, but it judges conditions such as `python_version < "3.11"` by the Python
that runs it, not by the board's.  So what pip brought is walked through with the board's conditions (closure.py), and pip is asked
again with what was missing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from packaging.requirements import Requirement  # noqa: E402

from jetson import wheels  # noqa: E402
from jetson.closure import Target, bare, missing, normal, read, walk  # noqa: E402

PYTHONS = ("3.10", "3.11", "3.12")
EXTRAS = ("serve", "cuda", "jetson")
TOOLS = (
    "pip",
    "setuptools",
    "wheel",
)  # Ubuntu keeps ensurepip in a package of its own; sdists are built with the others
# What has no wheels for aarch64 and is built on the board, with what building it needs (from its pyproject.toml).
SDISTS = {"pycuda": ("setuptools", "wheel", "numpy>=1.24"), "jetson-stats": ("setuptools>=61", "wheel")}
DEMO = ("chat.py", "desk.py", "panel.py")
PINS = ROOT / "constraints.txt"
MODEL = ROOT / "demos" / "models" / "storyteller-mamba2-5m"
NAME = "quamba-edge-kit"
README = """quamba_edge {version} for a Jetson Orin, without a network.

    ./setup.sh --dry-run      what it would do
    ./setup.sh                does it, after asking
    ./setup.sh --bundle MODEL.qedge

Everything comes from this folder; SHA256SUMS is checked first.  Python {pythons}; extras: {extras}.
"""


class Incomplete(wheels.Refused):
    """What pip could not bring."""


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        _, conflict, cause = ran.stdout.partition("The conflict is caused by:")
        errors = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
        raise Incomplete("\n".join([*errors, (conflict + cause).strip()]).strip() or ran.stderr[-2000:])


def sdist(requirement: Requirement, folder: Path) -> None:
    """Bring a package's sources.  pip asks them for their metadata on the way, which takes a minute for pycuda."""
    stem = requirement.name.replace("-", "[-_]")
    if not list(folder.glob(f"{stem}-*.tar.gz")):
        pip("download", "--dest", folder, "--no-deps", "--no-binary", requirement.name, str(requirement))


def constraints(target: Target, text: str) -> str:
    """The pins of constraints.txt that hold on the board, without their conditions."""
    lines = filter(None, (line.split("#")[0].strip() for line in text.splitlines()))
    return "".join(f"{bare(r)}\n" for r in map(Requirement, lines) if target.applies(r))


def download(target: Target, folder: Path, roots: list[Requirement]) -> None:
    """Bring wheels into `folder` until everything that `roots` need on the board is there."""
    tags = [f"--platform={name}" for name in target.platforms]
    tags += [f"--abi={abi}" for abi in (f"cp{target.short}", "abi3", "none")]
    tags += ["--implementation=cp", f"--python-version={target.short}", "--only-binary=:all:"]
    wanted: list[Requirement] = []
    for _ in range(10):
        lacking = missing(target, folder, roots)
        if not lacking:
            return
        wanted += lacking
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
            pins.write(constraints(target, PINS.read_text()))
            pins.flush()
            pip("download", "--dest", folder, "-c", pins.name, *tags, *map(str, wanted))
    raise Incomplete(f"Python {target.version}: still without {', '.join(map(str, lacking))}")


def collect(folder: Path, wheel: Path, extras: list[str], pythons: list[str]) -> None:
    """Fill `folder` with `wheel` and everything it needs, with `extras`, on each of `pythons`."""
    folder.mkdir(parents=True)
    shutil.copy2(wheel, folder)
    ours = Requirement(f"quamba-edge[{','.join(extras)}]")
    roots = [ours, *map(Requirement, TOOLS)]
    for requirement in missing(Target(pythons[0]), folder, [ours]):
        if normal(requirement.name) in SDISTS:
            sdist(requirement, folder)
            roots += [Requirement(need) for need in SDISTS[normal(requirement.name)]]
    common = list(folder.iterdir())
    for version in pythons:
        # A folder for each: what one Python got would be taken for what another should have.
        with tempfile.TemporaryDirectory() as scratch:
            for path in common:
                shutil.copy2(path, scratch)
            download(Target(version), Path(scratch), roots)
            for path in walk(Target(version), Path(scratch), roots)[
                1
            ]:  # pip also brought what only its own machine needs
                shutil.copy2(path, folder)


def packed() -> Path:
    """The embedded story teller in 4 bits, with the short calibration of `make demo`."""
    import quamba_edge

    out = ROOT / "build" / "storyteller-kit" / "storyteller-mamba2-5m-w4a8.qedge"
    out.parent.mkdir(parents=True, exist_ok=True)
    print(f"packing {MODEL.name}, for a kit needs a bundle: BUNDLE=FILE.qedge takes another", flush=True)
    quamba_edge.quantize(MODEL, out, "w4a8", calib_samples=32, calib_len=256, eval_tokens=4096)
    return out


def sums(folder: Path) -> str:
    """One line for every file, as sha256sum writes and checks them."""
    paths = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return "".join(f"{hashlib.sha256((folder / p).read_bytes()).hexdigest()}  {p}\n" for p in paths)


def lay_out(folder: Path, wheel: Path, bundle: Path, extras: list[str], pythons: list[str]) -> None:
    """Write the kit into `folder`, which must not exist."""
    shutil.copytree(ROOT / "jetson", folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    collect(folder / "wheels", wheel, extras, pythons)
    (folder / "bundle").mkdir()
    shutil.copyfile(bundle, folder / "bundle" / bundle.name)
    if "demo" in extras:
        (folder / "demos").mkdir()
        for name in DEMO:
            shutil.copyfile(ROOT / "demos" / name, folder / "demos" / name)
    version = read(wheel).version
    said = {
        "version": version,
        "wheel": f"wheels/{wheel.name}",
        "pythons": " ".join(pythons),
        "extras": " ".join(extras),
    }
    said["bundle"] = f"bundle/{bundle.name}"
    (folder / "kit.txt").write_text("".join(f"{key}={value}\n" for key, value in said.items()))
    (folder / "README.txt").write_text(README.format(**said))
    (folder / "SHA256SUMS").write_text(sums(folder))


def tar(folder: Path, out: Path) -> None:
    """The folder as one file; plain, since wheels and bundles are compressed already.  The same files give the same bytes."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        entry.mtime = int(wheels.dated())
        entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
        return entry

    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(folder, NAME, filter=plain)


def main() -> int:
    parser = argparse.ArgumentParser(description="collect what a board needs to be set up without a network")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "kit", help="the folder; the tar goes beside it")
    parser.add_argument("--bundle", type=Path, help="default: the embedded story teller, packed now")
    parser.add_argument("--wheel", type=Path, help="our wheel for aarch64; default: built now, into dist/")
    parser.add_argument("--extras", default="", help='more than "serve cuda jetson": "demo" brings Gradio')
    parser.add_argument("--python", action="append", choices=PYTHONS, help="default: all")
    given = parser.parse_args()
    extras = list(dict.fromkeys([*EXTRAS, *given.extras.split()]))
    try:
        if given.bundle and not given.bundle.is_file():
            raise wheels.Refused(f"{given.bundle} is not there: BUNDLE=FILE.qedge")
        wheel = given.wheel or wheels.build(["aarch64"], ROOT / "dist")[0]
        bundle = given.bundle or packed()
        given.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="kit-", dir=given.out.parent) as scratch:
            lay_out(Path(scratch) / NAME, wheel, bundle, extras, given.python or list(PYTHONS))
            shutil.rmtree(given.out, ignore_errors=True)
            os.replace(Path(scratch) / NAME, given.out)
        archive = given.out.parent / f"{NAME}-{read(wheel).version}.tar"
        tar(given.out, archive)
    except wheels.Refused as e:
        print(e, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError:  # the compiler has said what
        return 1
    files = [p for p in given.out.rglob("*") if p.is_file()]
    print(
        f"{given.out}: {len(files)} files, {sum(p.stat().st_size for p in files) / 1e6:.1f} MB; the same as one file: {archive}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
