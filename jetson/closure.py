"""Whether a folder of wheels holds everything that some packages need on a board: its Python, its machine, its conditions.

pip installs by the same rules on the board (versions, tags, conditions), so what is complete here installs there without a network.
"""

from __future__ import annotations

import tarfile
import zipfile
from dataclasses import dataclass
from email import message_from_bytes, message_from_string
from functools import cache, cached_property
from pathlib import Path

from packaging import tags
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

NEWEST_GLIBC = 35  # of Ubuntu 22.04, the oldest system that a kit is for


def normal(name: str) -> str:
    return canonicalize_name(name)


def bare(requirement: Requirement) -> Requirement:
    """Without its condition, which has been judged, and which pip would judge by the Python that runs it."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return Requirement(f"{requirement.name}{extras}{requirement.specifier}")


@dataclass(frozen=True)
class Target:
    """An aarch64 Linux with CPython `version`, such as "3.10"."""

    version: str

    @property
    def short(self) -> str:
        return self.version.replace(".", "")

    @cached_property
    def platforms(self) -> list[str]:
        names = [f"manylinux_2_{minor}_aarch64" for minor in range(NEWEST_GLIBC, 16, -1)]
        return [*names, "manylinux2014_aarch64", "linux_aarch64"]

    @cached_property
    def tags(self) -> frozenset[tags.Tag]:
        major, minor = map(int, self.version.split("."))
        own = tags.cpython_tags((major, minor), platforms=self.platforms)
        return frozenset([*own, *tags.compatible_tags((major, minor), f"cp{self.short}", self.platforms)])

    def applies(self, requirement: Requirement, extra: str = "") -> bool:
        """Whether the requirement's condition holds there."""
        if requirement.marker is None:
            return True
        return requirement.marker.evaluate(
            {
                "python_version": self.version,
                "python_full_version": f"{self.version}.12",
                "implementation_version": f"{self.version}.12",
                "implementation_name": "cpython",
                "platform_python_implementation": "CPython",
                "platform_machine": "aarch64",
                "platform_system": "Linux",
                "sys_platform": "linux",
                "os_name": "posix",
                "extra": extra,
            }
        )


@dataclass(frozen=True)
class Distribution:
    """What a wheel or an sdist says of itself."""

    name: str
    version: str
    requires: tuple[Requirement, ...]
    python: SpecifierSet
    tags: frozenset[tags.Tag] | None  # None: an sdist, which is built where it is needed

    def suits(self, target: Target) -> bool:
        built = self.tags is None or not self.tags.isdisjoint(target.tags)
        return built and self.python.contains(f"{target.version}.12", prereleases=True)


@cache
def read(path: Path) -> Distribution:
    """Raises ValueError for a file that is neither a wheel nor an sdist."""
    if path.name.endswith(".whl"):
        fits = parse_wheel_filename(path.name)[3]
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA") and n.count("/") == 1)
            message = message_from_bytes(archive.read(name))
    elif path.name.endswith(".tar.gz"):
        fits = None
        with tarfile.open(path) as archive:
            entry = min((m for m in archive if m.name.endswith("/PKG-INFO")), key=lambda m: m.name.count("/"))
            opened = archive.extractfile(entry)
            message = message_from_string(opened.read().decode() if opened else "")
    else:
        raise ValueError(f"{path} is neither a wheel (.whl) nor an sdist (.tar.gz)")
    requires = tuple(Requirement(line) for line in message.get_all("Requires-Dist", []))
    python = SpecifierSet(message.get("Requires-Python", ""))
    return Distribution(message["Name"], message["Version"], requires, python, fits)


def walk(target: Target, folder: Path, roots: list[Requirement]) -> tuple[list[Requirement], set[Path]]:
    """From `roots` to all that they need in turn, on that machine: what is lacking in `folder`, without conditions, and what is used."""
    known: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if read(path).suits(target):
            known.setdefault(normal(read(path).name), []).append(path)
    lacking: list[Requirement] = []
    used: set[Path] = set()
    seen: set[str] = set()
    waiting = [bare(r) for r in roots if target.applies(r)]
    while waiting:
        requirement = waiting.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        fitting = [
            p for p in known.get(normal(requirement.name), []) if requirement.specifier.contains(read(p).version)
        ]
        if not fitting:
            lacking.append(requirement)
            continue
        newest = max(fitting, key=lambda p: Version(read(p).version))
        used.add(newest)
        for need in read(newest).requires:
            if target.applies(need) or any(target.applies(need, extra) for extra in requirement.extras):
                waiting.append(bare(need))
    return lacking, used


def missing(target: Target, folder: Path, roots: list[Requirement]) -> list[Requirement]:
    """What `roots`, and all that they need in turn, do not find in `folder`.  Empty: it installs."""
    return walk(target, folder, roots)[0]
