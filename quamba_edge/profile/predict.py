"""How fast and how large a model will be on a machine, from the steps of its program alone.

    time of a step = largest of   weights and states / (bandwidth x share)
                                  products and recurrences / (peak x share)
                                  activations / (bandwidth x share)             + what starting a step costs

A *share* is how much of a machine's ceiling our kernels, or the published ones, are known to reach.  Each has its origin beside it;
where that is another machine than the one planned for, the prediction is as good as that comparison, and `plan` says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from quamba_edge import devices, models
from quamba_edge.bundle.outline import loaded_bytes
from quamba_edge.ops.program import Program, Step
from quamba_edge.profile.costs import Cost, cost_of
from quamba_edge.runtime.engine import CHUNKS
from quamba_edge.runtime.plan import arena_sizes
from quamba_edge.runtime.snapshots import Keep
from quamba_edge.runtime.state import state_bytes

TOKENIZER_BYTES_PER_ID = 440  # measured: what loading GPT-NeoX's 50,277 words adds to a process
PROCESS_BYTES = 42 << 20  # measured: Python, numpy and our modules before a bundle is opened (x86-64, Python 3.12)
HEADER_BYTES = 2 << 20  # measured: what a manifest of 300 to 700 tensors becomes
CONTEXT_BYTES = (
    250 << 20
)  # assumed: driver, context, kernels and staging buffers of the cuda backend; nobody has published it
SYSTEM_BYTES = 700 << 20  # reported for headless JetPack 6 (544 to 1100 MiB)
RESERVE_BYTES = 400 << 20  # left free: below it Linux on a Jetson ends processes or hangs


@dataclass(frozen=True)
class Shares:
    """How much of its ceiling each kind of work reaches."""

    memory: float
    products8: float
    products16: float
    ssd: float
    scan: float
    conv: float
    activations: float


# `bench --profile` on 2 quiet cores of an AMD EPYC with AVX-512, 130M and 370M shapes, 2026-11-21: linears of a decode step 92 to 116 % of the
# bandwidth that plain reading reached in the same run, of 128 tokens 76 to 83 % of the int8 peak; the recurrences by their floats.
CPU = Shares(memory=1.0, products8=0.79, products16=0.73, ssd=0.89, scan=0.14, conv=0.10, activations=0.5)
# Memory: copies reach 72 to 75 of 102 GB/s on an Orin Nano (reported).  Products: from the published time to the first of 1024 tokens
# of Mamba2-8B there (2.09 s W4A8, 2.32 s W4A16), taken as the 15W mode: one point each, so a fit and not a check.  Mamba2's recurrence
# is counted as if tensor cores did at least what the f32 lanes do at most.
ORIN = Shares(memory=0.73, products8=0.40, products16=0.70, ssd=1.0, scan=0.30, conv=0.30, activations=0.73)


@dataclass(frozen=True)
class Machine:
    """Ceilings of a machine in one power mode: bytes, and multiply-adds of int8, of f16 products and of f32, a second.

    start_s is what each step of a program costs beside its work; watts the mode's limit, where it has one.
    """

    name: str
    mode: str
    bandwidth: float
    products8: float
    products16: float
    floats: float
    start_s: float
    shares: Shares
    watts: float | None = None


def board_modes(board: devices.Board) -> list[Machine]:
    """A board in each of its modes.  A multiprocessor does 2048 int8, 1024 f16 or 128 f32 multiply-adds a clock."""
    rates = [(mode, board.sms * mode.gpu_mhz * 1e6) for mode in board.modes]
    # 2 us: assumed for a kernel within a CUDA graph.
    return [
        Machine(board.name, m.name, m.bandwidth_gbps * 1e9, 2048 * r, 1024 * r, 128 * r, 2e-6, ORIN, m.watts)
        for m, r in rates
    ]


def cpu_machine(bandwidth: float, dots: float, floats: float) -> Machine:
    """This machine's native backend, from its measured read bandwidth and arithmetic peaks (backends/cpu.py)."""
    return Machine("here", "as it is", bandwidth, dots, floats, floats, 0.5e-6, CPU)


def seconds(step: Step, cost: Cost, machine: Machine) -> float:
    """Predicted time of one step."""
    share, op = machine.shares, step.op.name
    kind = op.split("_")[0]
    if kind == "linear":
        work = cost.dots / (machine.products8 * share.products8) + cost.fmas / (machine.products16 * share.products16)
    else:
        work = cost.fmas / (machine.floats * getattr(share, kind)) if cost.fmas else 0.0
    moved = cost.memory / (machine.bandwidth * share.memory)
    return max(moved, work, cost.activations / (machine.bandwidth * share.activations)) + machine.start_s


def program_seconds(program: Program, manifest: Any, state_dtype: str, machine: Machine) -> float:
    """Predicted time of a whole program."""
    return sum(seconds(step, cost_of(step, manifest, state_dtype), machine) for step in program.steps)


@dataclass(frozen=True)
class Speed:
    """Tokens a second of all sequences together; joules of a token at most, where the mode has a limit in watts."""

    mode: str
    bandwidth_gbps: float
    prefill_tps: float
    decode_tps: float
    decode_j_at_most: float | None
    bound: str  # what takes most of a decode step: "memory" or "arithmetic"


def speed(manifest: Any, machine: Machine, state_dtype: str = "f16", sequences: int = 1) -> Speed:
    """Predicted speed of the manifest's model on a machine."""
    program = models.find(manifest.family, "program").program
    decode, chunk = program(manifest, sequences, 1, "last"), program(manifest, sequences, CHUNKS[0], "none")
    spent = program_seconds(decode, manifest, state_dtype, machine)
    moved = sum(cost_of(s, manifest, state_dtype).memory for s in decode.steps) / (
        machine.bandwidth * machine.shares.memory
    )
    tps = sequences / spent
    return Speed(
        machine.mode,
        machine.bandwidth / 1e9,
        sequences * CHUNKS[0] / program_seconds(chunk, manifest, state_dtype, machine),
        tps,
        machine.watts / tps if machine.watts else None,
        "memory" if moved > spent / 2 else "arithmetic",
    )


@dataclass(frozen=True)
class Part:
    """Bytes of memory, and where the figure comes from."""

    name: str
    bytes: int
    origin: str


def memory(
    manifest: Any,
    *,
    sessions: int = 1,
    state_dtype: str = "f16",
    keep: Keep | None = None,
    process_bytes: int = PROCESS_BYTES,
    gpu: bool = False,
) -> tuple[Part, ...]:
    """What the running model holds: with `keep` also as many snapshots as each conversation may keep.

    One program shape at a time is assumed (batches of one); a serving process adds its web server to it.
    """
    family = models.find(manifest.family, "program")
    programs = [family.program(manifest, 1, n, "last") for n in CHUNKS]
    state = state_bytes(programs[0].states, 1, state_dtype)
    parts = [
        Part("weights", loaded_bytes(manifest), "header"),
        Part(f"states of {sessions}", sessions * state, "dimensions"),
        Part("activations", sum(arena_sizes(programs).values()), "dimensions"),
        Part("scratch", scratch_bytes(manifest, programs), "dimensions, rounded up"),
        Part("tokenizer", manifest.vocab_size * TOKENIZER_BYTES_PER_ID, "measured for 50,277 words"),
        Part("Python", process_bytes + HEADER_BYTES, "measured"),
    ]
    if keep is not None:
        parts.insert(2, Part("snapshots", sessions * keep.room(state) * state, "at most, of long conversations"))
    if gpu:
        parts.append(Part("CUDA context", CONTEXT_BYTES, "assumed"))
    return tuple(parts)


def scratch_bytes(manifest: Any, programs: Iterable[Program]) -> int:
    """The largest input of a product, rounded to what kernels take, for each recorded program."""
    found = 0
    for program in programs:
        inputs = [s.sizes["M"] * s.sizes["K"] for s in program.steps if s.op.name.startswith("linear")]
        found += max(inputs) * (2 if any(s["act"] == 16 for s in manifest.sites.values()) else 1)
    return found
