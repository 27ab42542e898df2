"""What can be known of the board's kernels without a board, as Markdown: docs/cubins.md is its output.

    python csrc/cubin_report.py CUBINS_FOLDER          make cubin-report

Registers and spills are ptxas's words (cubins.json); instructions are counted in the disassembly (pip: nvidia-cuda-nvdisasm); grids, blocks
and shared memory are the launch table's (backends/launch.py), for the steps of published models; bytes are profile/costs.py's.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from quamba_edge import devices, models
from quamba_edge.apps.plan import SMALL
from quamba_edge.backends import launch
from quamba_edge.backends.launch import Launch
from quamba_edge.bundle.outline import outline, parameters
from quamba_edge.models import published
from quamba_edge.profile import predict
from quamba_edge.profile.costs import cost_of
from quamba_edge.quant.recipe import shipped
from quamba_edge.runtime.engine import CHUNKS
from quamba_edge.runtime.snapshots import USUAL

# An SM of sm_87: CUDA C programming guide, table of compute capabilities.
WARPS, BLOCKS, REGISTERS, SHARED, SMS = 48, 16, 65536, 167936, 8
SYSTEM_SHARED = 1024  # bytes of shared memory that every block takes beside its own
COUNTED = {
    "LDG 16 B": r"\bLDG\.[\w.]*\.128",
    "LDG": r"\bLDG\.",
    "LDGSTS": r"\bLDGSTS\.",
    "IMMA": r"\bIMMA\.",
    "HMMA": r"\bHMMA\.",
}
SHOWN = (("mamba2-8b", "w4a8"), ("mamba2-8b", "w4a16"), ("mamba2-2.7b", "w4a8"), ("mamba-2.8b", "w4a8"))


def resident(what: Launch, registers: int) -> int:
    """Warps of such blocks that an SM can hold at once."""
    warps = what.block // launch.WARP
    each = -(-registers * launch.WARP // 256) * 256  # registers are given out to warps in pieces of 256
    limits = (BLOCKS, WARPS // warps, REGISTERS // each // warps, SHARED // (what.shared + SYSTEM_SHARED))
    return warps * min(limits)


def disassembler() -> str:
    spec = find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("*/bin/nvdisasm")):
            return str(path)
    sys.exit("no nvdisasm in this Python: pip install nvidia-cuda-nvdisasm")


def instructions(path: Path) -> dict[str, Counter[str]]:
    """{kernel: how many of each of COUNTED stand in it}."""
    text = subprocess.run([disassembler(), "-c", str(path)], capture_output=True, text=True, check=True).stdout
    found: dict[str, Counter[str]] = {}
    kernel = ""
    for line in text.splitlines():
        if match := re.match(r"\.text\.(\w+):", line):
            kernel = match[1]
            found[kernel] = Counter()
        elif kernel:
            found[kernel].update(name for name, pattern in COUNTED.items() if re.search(pattern, line))
    return found


@dataclass
class Row:
    """Launches of one token that are alike."""

    what: Launch
    sizes: str
    count: int = 0
    nbytes: int = 0


def steps_of(name: str, recipe: str, tokens: int = 1) -> list[Row]:
    """The launches of a step of so many tokens with f16 states, equal ones together."""
    target = published.config(name)
    assert target is not None
    family, config = target
    manifest = outline(family, config, shipped(recipe, small=False))
    rows: dict[Any, Row] = {}
    for step in models.find(family, "program").program(manifest, 1, tokens, "last").steps:
        what = launch.launch(step.op, step.sizes, "f16")
        sizes = " ".join(f"{k}={v}" for k, v in step.sizes.items() if k not in ("M", "S", "T", "add", "rotate", "G"))
        row = rows.setdefault((what, sizes), Row(what, sizes))
        cost = cost_of(step, manifest, "f16")
        row.count += 1
        row.nbytes += cost.memory + cost.activations
    return list(rows.values())


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    align = "| --- |" + " ---: |" * (len(header) - 1)
    return ["| " + " | ".join(header) + " |", align, *("| " + " | ".join(r) + " |" for r in rows), ""]


def report(folder: Path) -> list[str]:
    record = json.loads((folder / "cubins.json").read_text())
    registers = {n: facts["registers"] for f in record["files"].values() for n, facts in f["kernels"].items()}
    spilled = sum(facts["spilled"] for f in record["files"].values() for facts in f["kernels"].values())
    lines = ["# The board's kernels, as far as they are known without a board", ""]
    lines += [
        f"Written by `make cubin-report`: {record['toolkit']}, sm_{record['arch']}. Nothing here was measured on a GPU.",
        "",
    ]
    lines += [
        "## Kernels",
        "",
        f"Bytes that registers spill to memory, of all {len(registers)} kernels together: {spilled}.",
        "",
    ]
    lines += [
        "Instructions as they stand in the code, not as often as they run. Loads of less than 16 bytes in the products are those of x,"
    ]
    lines += ["of scales, and of matrices whose columns are no multiple of 8.", ""]
    rows = []
    for stem in record["files"]:
        counts = instructions(folder / f"{stem}.cubin")
        for name in launch.kernels(stem):
            rows.append([name, str(registers[name]), *(str(counts[name][c] or "") for c in COUNTED)])
    lines += table(["kernel", "registers", *COUNTED], rows)
    lines += ["## What a token launches", ""]
    lines += [
        f"Decode, f16 states. Blocks are spread over {SMS} multiprocessors; *resident* is how many of {WARPS} warps one holds at once,"
    ]
    lines += [
        "*asked* how many the grid has for each. Bytes are weights, states and activations, each once. The floor is all bytes over the"
    ]
    lines += ["memory's whole bandwidth; what to expect of it, and why, `quamba-edge plan published` says.", ""]
    for name, recipe in SHOWN:
        lines += launches(name, recipe, 1, registers)
    lines += [f"## What a chunk of {CHUNKS[0]} tokens launches", "", "A long prompt is read in such chunks.", ""]
    lines += launches(*SHOWN[0], CHUNKS[0], registers)
    return lines + predictions()


def launches(name: str, recipe: str, tokens: int, registers: dict[str, int]) -> list[str]:
    """The table of a step's launches."""
    steps = steps_of(name, recipe, tokens)
    total, count = sum(r.nbytes for r in steps), sum(r.count for r in steps)
    floor = ", ".join(f"{total / gbps / 1e6:.1f} ms at {gbps} GB/s" for gbps in (68, 102))
    rows = []
    for r in steps:
        x, y, z = r.what.grid
        asked = x * y * z * r.what.block // launch.WARP / SMS
        held = resident(r.what, registers[r.what.kernel])
        place = [r.what.kernel, r.sizes, str(r.count), f"{x} x {y} x {z}", str(r.what.block), str(r.what.shared)]
        rows.append([*place, f"{asked:.0f}", str(held), f"{r.nbytes / r.count / 1e6:.3f}", f"{r.nbytes / total:.1%}"])
    head = "kernel,sizes,launches,grid,threads,shared B,asked,resident,MB each,of all bytes".split(",")
    return [
        f"### {name} {recipe}: {count} launches, {total / 1e6:.0f} MB, floor {floor}",
        "",
        *table(head, rows),
    ]


# Weights that a token reads (all but the embedding), and the tokens a second that NVIDIA has published for an Orin Nano 8GB as sold first (68 GB/s) and
# as "Super" (102), MLC with INT4: developer.nvidia.com, "Super" boost of the developer kit.
PUBLISHED = (("Llama-3.1-8B", 8.03e9 - 128256 * 4096, 14.0, 19.14), ("Qwen2.5-7B", 7.62e9 - 152064 * 3584, 14.2, 21.75))
BITS = 4.25, 4.5  # of a weight: groups of 128 with a 16-bit scale, and MLC's usual groups of 32
SHARE = 0.80


def predictions() -> list[str]:
    """Tokens a second of every published size and recipe, at two shares of the bandwidth."""
    modes = [m for m in predict.board_modes(devices.ORIN_NANO_8GB) if m.mode in ("15W", "25W")]
    lines = ["## What a board should do", "", "Reckoned, not measured."]
    lines += [
        "The share of the memory's bandwidth that a decode step reaches as a whole decides it. Two are shown:",
        "",
    ]
    lines += [
        f"* {predict.ORIN.memory:.0%}: what the published Mamba2 kernels reach, and copies (docs/bench.md); `plan` reckons with it."
    ]
    reached = [
        weights * bits / 8 * rate / mode.bandwidth
        for _, weights, *rates in PUBLISHED
        for mode, rate in zip(modes, rates, strict=True)
        for bits in BITS
    ]
    steps = steps_of(*SHOWN[0])
    plain = sum(r.nbytes for r in steps if r.what.kernel.startswith("linear")) / sum(r.nbytes for r in steps)
    words = "; ".join(f"{name} {slow:g} and {fast:g} tokens/s" for name, _, slow, fast in PUBLISHED)
    lines += [
        f"* {SHARE:.0%}: what plain 4-bit reading reaches on this board in NVIDIA's own figures ({words}): {min(reached):.0%} to {max(reached):.0%} of",
        f"  the bandwidth with {BITS[0]} to {BITS[1]} bits a weight, whole tokens, everything included. A decode step of {SHOWN[0][0]} {SHOWN[0][1]} is to {plain:.0%} such reading, from one graph.",
        "",
    ]
    rows = []
    for name in published.NAMES:
        target = published.config(name)
        assert target is not None
        for recipe in ("w4a8", "w4a16", "w8a8", "w16a16"):
            manifest = outline(*target, shipped(recipe, small=parameters(*target) < SMALL))
            program = models.find(target[0], "program").program(manifest, 1, 1, "last")
            moved = sum(cost_of(s, manifest, "f16").memory for s in program.steps)
            held = sum(p.bytes for p in predict.memory(manifest, keep=USUAL, gpu=True))
            row = [name, recipe, f"{held / 1e6:.0f}", f"{moved / 1e6:.0f}", str(len(program.steps))]
            if held + predict.SYSTEM_BYTES + predict.RESERVE_BYTES > devices.ORIN_NANO_8GB.memory_bytes:
                rows.append([*row, *["does not fit"] + [""] * 5])
                continue
            for machine in modes:
                found = [
                    predict.speed(manifest, replace(machine, shares=replace(machine.shares, memory=share)))
                    for share in (predict.ORIN.memory, SHARE)
                ]
                row += [f"{found[0].decode_tps:.1f}", f"{found[1].decode_tps:.1f}", f"{found[0].prefill_tps:.0f}"]
            rows.append(row)
    head = ["model", "recipe", "memory in all, MB", "MB a token", "launches"]
    for machine in modes:
        at = f"{machine.bandwidth / 1e9:.0f} GB/s"
        head += [f"{at}: tokens/s at {predict.ORIN.memory:.0%}", f"at {SHARE:.0%}", "prompt, tokens/s"]
    lines += [
        "Decode of one text with f16 states; memory is the running model's with its context, snapshots and tokenizer (`plan`).",
        "",
    ]
    return lines + table(head, rows)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print("\n".join(report(Path(sys.argv[1]))).rstrip())
