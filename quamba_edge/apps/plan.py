"""`quamba-edge plan`: will a model fit a board, how fast will it be, what does a token cost there.  From dimensions only.

The target is a bundle (its header is read), a checkpoint folder or a Hub name (its config.json), a published model by its short name, or
"published" for all of them.  profile/predict.py says how the figures come about, docs/bench.md how well they hold.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from quamba_edge import devices
from quamba_edge.bundle.outline import file_bytes, outline, parameters
from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import BadUsage, Missing
from quamba_edge.models import published
from quamba_edge.profile import predict
from quamba_edge.profile.predict import Machine, Part, Speed
from quamba_edge.quant import recipe as recipes
from quamba_edge.runtime.snapshots import USUAL
from quamba_edge.runtime.state import resolved
from quamba_edge.telemetry import linux
from quamba_edge.telemetry.files import Tree

SMALL = 1_000_000_000  # parameters, as pack: below, embedding and head keep 8 bits
PRECISE_FIRST = ("w16a16", "w8a8", "w4a16", "w4a8")


@dataclass(frozen=True)
class Choice:
    """Another recipe for the same model: bytes it needs, bytes left over (negative: too few), fastest mode's decode speed."""

    recipe: str
    need_bytes: int
    spare_bytes: int
    decode_tps: float


@dataclass(frozen=True)
class Plan:
    """file_bytes is the size of the bundle; memory sums up to need_bytes; room_bytes is what the machine has for it, spare_bytes the difference.

    recipes is empty, and best None, where the target is "published".  best: the most precise shipped recipe that fits.
    """

    target: str
    recipe: str
    device: str
    parameters: int
    file_bytes: int
    memory: tuple[Part, ...]
    need_bytes: int
    room_bytes: int
    spare_bytes: int
    fits: bool
    speeds: tuple[Speed, ...]
    recipes: tuple[Choice, ...]
    best: str | None
    state_dtype: str
    sessions: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Target:
    """A model as its dimensions; `manifest` is that of a bundle, or the outline of one; file_bytes are the bundle's, or predicted."""

    name: str
    family: str
    config: Any
    manifest: Any
    recipe: str
    file_bytes: int


@dataclass(frozen=True)
class Place:
    """A machine to plan for: its modes, the bytes a model may take, the process it runs in."""

    name: str
    modes: tuple[Machine, ...]
    room_bytes: int
    process_bytes: int
    gpu: bool
    notes: tuple[str, ...]


def plan(
    target: str,
    device: str,
    *,
    recipe: str = "w4a8",
    sessions: int = 1,
    state_dtype: str = "f16",
    threads: int | None = None,
) -> Plan:
    """BadUsage for an unknown device or impossible numbers; BadBundle, BadCheckpoint, BadRecipe or Missing for the target."""
    if sessions < 1:
        raise BadUsage(f"--sessions is {sessions}: expected 1 or more")
    if threads is not None and device != "here":
        raise BadUsage(f"--threads is for --device here: {device} is not this machine")
    return planned(find(target, recipe), place(device, threads), sessions, state_dtype)


def plan_published(device: str, *, recipe: str = "w4a8", sessions: int = 1, state_dtype: str = "f16") -> list[Plan]:
    """A plan of every published model, without other recipes."""
    there = place(device, None)
    return [planned(find(name, recipe), there, sessions, state_dtype, others=False) for name in published.NAMES]


def planned(of: Target, there: Place, sessions: int, state_dtype: str, others: bool = True) -> Plan:
    """The plan of a model on a machine."""
    state_dtype = resolved(state_dtype, of.manifest)

    def parts(manifest: Any) -> tuple[Part, ...]:
        given: dict[str, Any] = {"sessions": sessions, "state_dtype": state_dtype, "keep": USUAL, "gpu": there.gpu}
        return predict.memory(manifest, process_bytes=there.process_bytes, **given)

    def need(manifest: Any) -> int:
        return sum(p.bytes for p in parts(manifest))

    choices = []
    for name in PRECISE_FIRST if others else ():
        other = outline(of.family, of.config, _shipped(name, of.family, of.config))
        other = replace(other, vocab_size=of.manifest.vocab_size)
        fastest = max(predict.speed(other, m, state_dtype).decode_tps for m in there.modes)
        choices.append(Choice(name, need(other), there.room_bytes - need(other), fastest))
    total = need(of.manifest)
    return Plan(
        target=of.name,
        recipe=of.recipe,
        device=there.name,
        parameters=parameters(of.family, of.config),
        file_bytes=of.file_bytes,
        memory=parts(of.manifest),
        need_bytes=total,
        room_bytes=there.room_bytes,
        spare_bytes=there.room_bytes - total,
        fits=total <= there.room_bytes,
        speeds=tuple(predict.speed(of.manifest, m, state_dtype) for m in there.modes),
        recipes=tuple(choices),
        best=next((c.recipe for c in choices if c.spare_bytes >= 0), None),
        state_dtype=state_dtype,
        sessions=sessions,
        notes=there.notes,
    )


def find(target: str, recipe: str) -> Target:
    """What a target's dimensions are; no weights are read.  The recipe counts where the target is not a bundle."""
    path = Path(target)
    if path.is_file():
        with Bundle.open(path, verify=False) as bundle:
            name = str(bundle.manifest.recipe.get("name", "custom"))
            return Target(path.name, bundle.manifest.family, bundle.config, bundle.manifest, name, path.stat().st_size)
    known = None if path.is_dir() else published.config(target)
    family, config = known if known is not None else _checkpoint(target)
    chosen = recipes.load(recipe, small=parameters(family, config) < SMALL, n_layer=config.n_layer)
    made = outline(family, config, chosen)
    return Target(target, family, config, made, chosen.name, file_bytes(made))


def _shipped(name: str, family: str, config: Any) -> recipes.Recipe:
    return recipes.shipped(name, small=parameters(family, config) < SMALL)


def _checkpoint(target: str) -> tuple[str, Any]:
    """(family, Config) of a checkpoint's config.json, alone downloaded where the target is a Hub name."""
    try:
        from quamba_edge.checkpoint import hub
    except ImportError:
        raise Missing(
            f"{target}: reading a checkpoint's config needs torch (pip install 'quamba-edge[pack]'); without it, plan a bundle, or one of "
            f"{', '.join(published.NAMES)}"
        ) from None
    folder = Path(target)
    if target.count("/") == 1 and not folder.exists() and not target.startswith((".", "/")):
        try:
            from huggingface_hub import hf_hub_download

            folder = Path(hf_hub_download(target, "config.json")).parent
        except Exception as e:  # its HTTP client's, which differ by version
            reason = (str(e).strip().splitlines() or ["no reason given"])[0][:200]
            raise Missing(
                f"{target} is no file or folder here, and its config.json did not come from the Hugging Face Hub ({reason}); known without "
                f"a network: {', '.join(published.NAMES)}"
            ) from None
    if not folder.is_dir():
        raise BadUsage(
            f"{target} is no bundle, folder, or Hub name such as org/name; by short name there are {', '.join(published.NAMES)}"
        )
    return hub.read_config(folder)


def place(device: str, threads: int | None) -> Place:
    """A board of the table, or with "here" this machine, measured now."""
    if device == "here":
        return here(threads)
    board = devices.named(device)
    if board is None:
        raise BadUsage(f"{device!r} is not a device: choose from here, {', '.join(b.name for b in devices.BOARDS)}")
    room = board.memory_bytes - predict.SYSTEM_BYTES - predict.RESERVE_BYTES
    taken = (
        f"{predict.SYSTEM_BYTES / 1e6:.0f} MB for a headless system and {predict.RESERVE_BYTES / 1e6:.0f} MB kept free"
    )
    notes = (
        f"of {board.memory_bytes / 1e6:.0f} MB, {taken} are no room for a model",
        "predicted for the GPU; not measured on a board: shares of the ceilings are from other people's figures (docs/bench.md)",
    )
    return Place(device, tuple(predict.board_modes(board)), room, predict.PROCESS_BYTES, True, notes)


def here(threads: int | None) -> Place:
    """This machine: what its memory and arithmetic reach just now, what is available, what an empty process holds."""
    from quamba_edge.backends import cpu

    if reason := cpu.why_not():
        raise Missing(f"--device here measures the native backend: {reason}")
    backend = cpu.CpuBackend(threads)
    bandwidth = cpu.read_bandwidth(backend.threads)
    dots, floats = (backend.threads * rate for rate in cpu.peak(backend.instruction_set))
    machine = replace(predict.cpu_machine(bandwidth, dots, floats), mode=f"{backend.threads} threads")
    free = linux.memory(Tree(Path("/")))["ram_available_bytes"] or 0
    told = f"{backend.instruction_set}, {backend.threads} threads: {bandwidth / 1e9:.1f} GB/s, {dots / 1e9:.0f} G int8 multiply-adds a second"
    notes = (
        f"{predict.RESERVE_BYTES / 1e6:.0f} MB of {free / 1e6:.0f} MB available are kept free",
        f"measured now: {told}",
    )
    return Place("here", (machine,), free - predict.RESERVE_BYTES, process_bytes(), False, notes)


def process_bytes() -> int:
    """Resident memory of a process that is about to open a bundle."""
    code = (
        "from quamba_edge.runtime import model\nfrom quamba_edge.backends import open_backend\nopen_backend()\n"
        "from quamba_edge.profile.memory import peak_rss\nprint(peak_rss())"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else predict.PROCESS_BYTES
