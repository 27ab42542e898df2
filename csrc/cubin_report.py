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
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from quamba_edge import models
from quamba_edge.backends import launch
from quamba_edge.backends.launch import Launch
from quamba_edge.bundle.outline import outline
from quamba_edge.models import published
from quamba_edge.profile.costs import cost_of
from quamba_edge.quant.recipe import shipped

# An SM of sm_87: CUDA C programming guide, table of compute capabilities.
WARPS, BLOCKS, REGISTERS, SHARED, SMS = 48, 16, 65536, 167936, 8
SYSTEM_SHARED = 1024  # bytes of shared memory that every block takes beside its own
COUNTED = {"LDG 16 B": r"\bLDG\.[\w.]*\.128", "LDG": r"\bLDG\.", "IMMA": r"\bIMMA\.", "HMMA": r"\bHMMA\."}
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


def steps_of(name: str, recipe: str) -> list[Row]:
    """The launches of a decode step with f16 states, equal ones together."""
    target = published.config(name)
    assert target is not None
    family, config = target
    manifest = outline(family, config, shipped(recipe, small=False))
    rows: dict[Any, Row] = {}
    for step in models.find(family, "program").program(manifest, 1, 1, "last").steps:
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
        steps = steps_of(name, recipe)
        total = sum(r.nbytes for r in steps)
        floor = ", ".join(f"{total / gbps / 1e6:.1f} ms at {gbps} GB/s" for gbps in (68, 102))
        launches = sum(r.count for r in steps)
        lines += [f"### {name} {recipe}: {launches} launches, {total / 1e6:.0f} MB, floor {floor}", ""]
        rows = []
        for r in steps:
            x, y, z = r.what.grid
            asked = x * y * z * r.what.block // launch.WARP / SMS
            held = resident(r.what, registers[r.what.kernel])
            place = [r.what.kernel, r.sizes, str(r.count), f"{x} x {y} x {z}", str(r.what.block), str(r.what.shared)]
            rows.append(
                [*place, f"{asked:.0f}", str(held), f"{r.nbytes / r.count / 1e6:.3f}", f"{r.nbytes / total:.1%}"]
            )
        head = [
            "kernel",
            "sizes",
            "launches",
            "grid",
            "threads",
            "shared B",
            "asked",
            "resident",
            "MB each",
            "of all bytes",
        ]
        lines += table(head, rows)
    return lines


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print("\n".join(report(Path(sys.argv[1]))).rstrip())
