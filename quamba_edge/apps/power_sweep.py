"""`quamba-edge power sweep`: what each power mode of this board gives and costs, with a bundle.

The one place in this package that changes something about the machine, and only when told to (--yes).  The mode that was on is put
back whatever happens: Ctrl-C, a lost connection, errors.  A mode that takes a reboot is left out, and said so.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quamba_edge import telemetry
from quamba_edge.apps.power import modes_of
from quamba_edge.apps.top import hung_up_is_interrupted
from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import BadUsage, Interrupted, Missing
from quamba_edge.runtime.session import Session
from quamba_edge.telemetry import Recorder, Source, energy, nvpmodel
from quamba_edge.telemetry.files import Tree

NVPMODEL = ("nvpmodel",)
SETTLE_S = 5.0  # after a switch: clocks follow at once, the regulators and the fan within seconds
PROMPTLY_S = 60.0  # nvpmodel takes a second or two; more, and it waits for something
IDLE_S = energy.MIN_IDLE_S + 1
PROMPT_TOKENS, ANSWER_TOKENS = 128, 32  # one round: a chunk of prompt, and some tokens after it


@dataclass(frozen=True)
class Swept:
    """What a sweep found: a row for each mode, with figures, or with `skipped` saying why there are none."""

    bundle: str
    restored: str
    rows: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Figures:
    """One mode.  Joules are of everything drawn, idle included; `energy_reason` says why they are None.

    hottest_c is the hottest zone at the end, over_current_events what was counted meanwhile.
    """

    prefill_tps: float
    decode_tps: float
    prefill_j_per_token: float | None
    decode_j_per_token: float | None
    decode_net_j_per_token: float | None
    decode_w: float | None
    idle_w: float | None
    energy_reason: str | None
    gpu_mhz: float | None
    hottest_c: float | None
    over_current_events: dict[str, int]


def measure(
    session: Session, vocab_size: int, source: Source, seconds: float = 10.0, idle_s: float = IDLE_S
) -> Figures:
    """Tokens a second and joules a token of the mode that the machine is in.

    The idle draw first, model loaded; then rounds of prompt and answer until so many seconds have gone into answers.
    """
    ids = [int(i) for i in np.random.default_rng(0).integers(0, vocab_size, PROMPT_TOKENS)]
    prompts: list[tuple[int, int]] = []
    answers: list[tuple[int, int]] = []
    _round(session, ids)  # pages mapped, plans recorded, clocks up
    with Recorder(source) as resting:
        time.sleep(idle_s)
    idle = energy.idle_watts(resting.samples())
    with Recorder(source) as recorder:
        while sum(end - begin for begin, end in answers) < seconds * 1e9:
            begin, read, end = _round(session, ids)
            prompts.append((begin, read))
            answers.append((read, end))
    samples = recorder.samples()
    prefill = energy.per_token(samples, prompts, len(prompts) * PROMPT_TOKENS, idle.mean_w)
    decode = energy.per_token(samples, answers, len(answers) * ANSWER_TOKENS, idle.mean_w)
    first, last = samples[0], samples[-1]
    return Figures(
        prefill_tps=prefill.tokens / prefill.energy.seconds,
        decode_tps=decode.tokens / decode.energy.seconds,
        prefill_j_per_token=prefill.gross_j,
        decode_j_per_token=decode.gross_j,
        decode_net_j_per_token=decode.net_j,
        decode_w=decode.energy.mean_w,
        idle_w=idle.mean_w,
        energy_reason=decode.reason,
        gpu_mhz=last.gpu_mhz,
        hottest_c=max(last.temps_c.values(), default=None),
        over_current_events={k: n - first.over_current_events.get(k, n) for k, n in last.over_current_events.items()},
    )


def _round(session: Session, ids: Sequence[int]) -> tuple[int, int, int]:
    """When it began, when the prompt was read, when the answer was there; nanoseconds of the monotonic clock."""
    session.reset()
    begin = time.monotonic_ns()
    logits = session.prefill(ids)
    read = time.monotonic_ns()
    for _ in range(ANSWER_TOKENS):
        logits = session.decode(int(np.argmax(logits)))
    return begin, read, time.monotonic_ns()


def run(
    path: Path,
    *,
    yes: bool,
    names: Sequence[str] = (),
    backend: str = "auto",
    threads: int | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Swept:
    """Sweep this machine with the bundle at `path`; errors as `sweep` and runtime.model.load."""
    loaded: list[Callable[[], Figures]] = []

    def measured() -> Figures:
        if not loaded:  # after all refusals: loading takes long
            from quamba_edge.runtime.model import load

            model = load(path, backend, threads=threads)
            session, source = model.session(), telemetry.best()
            loaded.append(lambda: measure(session, model.bundle.manifest.vocab_size, source))
        return loaded[0]()

    Bundle.open(path, verify=False).close()  # a wrong name is told before anything is switched
    return sweep(path, measured, yes=yes, names=names, progress=progress)


def sweep(
    bundle: Path,
    measure: Callable[[], Figures],
    *,
    yes: bool,
    names: Sequence[str] = (),
    root: Path = Path("/"),
    command: Sequence[str] = NVPMODEL,
    settle_s: float = SETTLE_S,
    progress: Callable[[str], None] = lambda text: None,
) -> Swept:
    """Measure in each mode, or those named, and put the present one back.

    measure: no arguments, the figures of the mode the board is in.  command: how nvpmodel is called, "-m ID" is added.
    BadUsage without `yes`; Missing without root, without modes, or if the first mode could not be put back.
    """
    modes = modes_of(root)
    unknown = [n for n in names if modes.named(n) is None]
    if unknown:
        raise BadUsage(f"--modes {', '.join(unknown)}: this board has {', '.join(m.name for m in modes.modes)}")
    chosen = [m for m in modes.modes if not names or m.name in names]
    first = modes.named(modes.current) if modes.current else None
    if first is None:
        raise Missing(
            f"{root}/{nvpmodel.STATUS[1:]} does not say the present mode, so it could not be put back: sudo nvpmodel -m ID"
        )
    if not yes:
        raise BadUsage(
            f"a sweep would switch this board from {first.name} to {', '.join(m.name for m in chosen)} and back; "
            "nothing was changed: add --yes"
        )
    if tuple(command) == NVPMODEL and os.geteuid() != 0:
        raise Missing('changing the power mode needs root: sudo env "PATH=$PATH" quamba-edge power sweep BUNDLE --yes')
    rows: list[dict[str, Any]] = []
    try:
        with hung_up_is_interrupted(), _put_back(first, root, command):
            for mode in chosen:
                row: dict[str, Any] = {"mode": mode.name, "id": mode.id, "skipped": None}
                progress(f"{mode.name}: switching")
                row["skipped"] = _switch(mode, first, root, command)
                if row["skipped"] is None:
                    time.sleep(settle_s)
                    progress(f"{mode.name}: measuring")
                    row |= asdict(measure())
                rows.append(row)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; the power mode is {first.name} again") from None
    return Swept(str(bundle), first.name, tuple(rows))


@contextmanager
def _put_back(first: nvpmodel.Mode, root: Path, command: Sequence[str]) -> Iterator[None]:
    try:
        yield
    finally:
        # A second Ctrl-C, from a person who is in a hurry, must not stop this.
        main = threading.current_thread() is threading.main_thread()
        stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if main else ()
        before = {s: signal.signal(s, signal.SIG_IGN) for s in stops}
        try:
            failed = _switch(first, first, root, command)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if failed:
            raise Missing(
                f"the power mode could not be put back to {first.name} ({failed}): sudo nvpmodel -m {first.id}"
            )


def _switch(mode: nvpmodel.Mode, first: nvpmodel.Mode, root: Path, command: Sequence[str]) -> str | None:
    """Bring the board into a mode; why it is not in it, or None."""
    tree = Tree(root)
    if nvpmodel.read(tree).current == mode.name:
        return None
    if None not in (mode.tpc_mask, first.tpc_mask) and mode.tpc_mask != first.tpc_mask:
        return "it powers another part of the GPU, which takes a reboot"
    try:
        # A session of its own, so that Ctrl-C in the terminal does not cut it in the middle; no input, so that it cannot ask to reboot.
        done = subprocess.run(
            [*command, "-m", str(mode.id)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROMPTLY_S,
            start_new_session=True,
        )
    except OSError as e:
        return f"{command[0]}: {e.strerror}"
    except subprocess.TimeoutExpired:
        return f"{command[0]} did not end within {PROMPTLY_S:g} s"
    now = nvpmodel.read(tree).current
    if now != mode.name:
        said = " ".join((done.stderr or done.stdout).split())[:200]
        return f"{command[0]} left it in {now}" + (f", saying: {said}" if said else f", exit code {done.returncode}")
    return None


def text(swept: Swept) -> str:
    """A row for each mode."""
    lines = [
        f"{'mode':12}{'prefill t/s':>12}{'decode t/s':>12}{'J/token':>10}{'W':>8}{'idle W':>8}{'hottest C':>11}{'oc3':>6}"
    ]
    for r in swept.rows:
        if r["skipped"]:
            lines.append(f"{r['mode']:12}not measured: {r['skipped']}")
            continue
        columns = (
            ("prefill_tps", 12, 1),
            ("decode_tps", 12, 2),
            ("decode_j_per_token", 10, 3),
            ("decode_w", 8, 2),
            ("idle_w", 8, 2),
        )
        told = "".join(f"{'-' if r.get(k) is None else format(r[k], f'.{d}f'):>{w}}" for k, w, d in columns)
        heat, events = r.get("hottest_c"), r.get("over_current_events", {}).get("oc3")
        lines.append(
            f"{r['mode']:12}{told}{'-' if heat is None else format(heat, '.1f'):>11}{'-' if events is None else events:>6}"
        )
        if r.get("energy_reason"):
            lines.append(f"{'':12}energy not told: {r['energy_reason']}")
    return "\n".join([*lines, f"{swept.bundle}; the power mode is {swept.restored} again"])
