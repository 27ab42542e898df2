"""What the machine draws, clocks, heats and holds, watched from the side: nothing here changes anything.

source = telemetry.best()                 # or telemetry.open_source("tegrastats")
with telemetry.Recorder(source) as recorder:
    ...
recorder.samples()                        # telemetry/energy.py makes joules of them

docs/telemetry.md says what is read where.  Importing this touches no hardware.
"""

from __future__ import annotations

from pathlib import Path

from quamba_edge.errors import BadUsage, Missing
from quamba_edge.telemetry import tegra
from quamba_edge.telemetry.files import Tree
from quamba_edge.telemetry.linux import Linux
from quamba_edge.telemetry.sample import Rail, Recorder, Sample, Source

__all__ = ["SOURCES", "Rail", "Recorder", "Sample", "Source", "best", "open_source"]

SOURCES = ("tegra", "tegrastats", "jtop", "nvidia", "linux")


def best(root: Path = Path("/")) -> Source:
    """The source for this machine: a Jetson's own files, else NVIDIA's library where it finds a card, else plain Linux.

    Any Linux has something to say, so this never fails; jtop and tegrastats are taken only when asked for by name.
    """
    if tegra.is_tegra(Tree(root)):
        return tegra.Tegra(root)
    if root == Path("/"):
        try:
            return open_source("nvidia")
        except Missing:
            pass
    return Linux(root)


def open_source(name: str, root: Path = Path("/")) -> Source:
    """The source called `name`, or with "auto" the best.  Missing where this machine has no such thing."""
    if name == "auto":
        return best(root)
    if name not in SOURCES:
        raise BadUsage(f"{name!r} is no source of telemetry: choose from auto, {', '.join(SOURCES)}")
    if name == "linux":
        return Linux(root)
    if name == "tegra":
        if not tegra.is_tegra(Tree(root)):
            raise Missing(f"{root} is no Jetson (no etc/nv_tegra_release there): take the source linux")
        return tegra.Tegra(root)
    if root != Path("/"):
        raise BadUsage(
            f"the source {name} reads the running machine, not a folder: leave out the root, or take tegra or linux"
        )
    if name == "nvidia":
        from quamba_edge.telemetry.nvidia import Nvidia

        return Nvidia()
    if name == "jtop":
        from quamba_edge.telemetry.jtop import Jtop

        return Jtop()
    from quamba_edge.telemetry.tegrastats import Tegrastats

    return Tegrastats()
