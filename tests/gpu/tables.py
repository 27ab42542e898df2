"""What was measured, as Markdown for docs/gpu.md, and which of issue 4's targets it misses."""

from __future__ import annotations

from collections.abc import Sequence

from tests.gpu.measures import Kernel, Load

GEMV_OF_COPY = 0.85  # of a device-to-device copy's bandwidth, for 4-bit products of one token
DECODE = {"w4a8": 3.0, "w4a16": 3.0, "w8a8": 1.7}  # times w16a16
PREFILL = {"w4a8": 1.3, "w8a8": 1.3}
LOADING = 150e6  # bytes of host memory


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def kernels(name: str, rows: Sequence[Kernel], copy_bandwidth: float) -> tuple[list[str], list[str]]:
    """(lines, targets missed)."""
    tokens = rows[0].tokens
    lines = [f"### {name}, {tokens} token{'s' * (tokens > 1)} a step; a copy: {copy_bandwidth / 1e9:.0f} GB/s", ""]
    shown = [
        [
            r.kernel,
            r.sizes,
            str(r.launches),
            f"{r.us:.1f}",
            f"{r.nbytes / 1e6:.3f}",
            f"{r.gbps:.0f}",
            f"{r.of_copy:.0%}",
            f"{r.products / 1e12:.2f}",
        ]
        for r in rows
    ]
    head = ["kernel", "sizes", "launches", "us each", "MB each", "GB/s", "of a copy", "T multiply-adds/s"]
    missed = [
        f"{name}: {r.kernel} {r.sizes} reaches {r.of_copy:.0%} of a copy's bandwidth, {GEMV_OF_COPY:.0%} is asked for"
        for r in rows
        if tokens == 1 and r.kernel.startswith("linear_w4") and r.of_copy < GEMV_OF_COPY
    ]
    return lines + table(head, shown), missed


def speeds(name: str, found: dict[str, tuple[float, float, float]]) -> tuple[list[str], list[str]]:
    """found: {recipe: (decode tokens/s, prefill tokens/s, decode GB/s)}, w16a16 among them."""
    base, rows, missed = found.get("w16a16"), [], []
    for recipe, (decode, prefill, gbps) in found.items():
        ratios = [decode / base[0], prefill / base[1]] if base else [float("nan")] * 2
        rows.append([recipe, f"{decode:.1f}", f"{ratios[0]:.2f}", f"{gbps:.0f}", f"{prefill:.0f}", f"{ratios[1]:.2f}"])
        for what, ratio, targets in (("decode", ratios[0], DECODE), ("prefill", ratios[1], PREFILL)):
            if recipe in targets and not ratio >= targets[recipe]:
                missed.append(f"{name} {recipe}: {what} is {ratio:.2f} times w16a16's, {targets[recipe]} is asked for")
    head = ["recipe", "decode, tokens/s", "to w16a16", "GB/s", "prefill, tokens/s", "to w16a16"]
    return [f"### {name}", "", *table(head, rows)], missed


def loading(name: str, found: Load) -> tuple[list[str], list[str]]:
    rate = found.bytes / found.seconds / 1e9
    line = (
        f"{name}, {found.bytes / 1e9:.2f} GB: {found.seconds:.1f} s from the file to the first logits ({rate:.2f} GB/s, hashes checked); "
        f"host memory {found.before / 1e6:.0f} MB with the context open, at most {found.peak / 1e6:.0f} while loading."
    )
    over = found.added > LOADING
    missed = [f"{name}: loading adds {found.added / 1e6:.0f} MB of host memory, {LOADING / 1e6:.0f} are allowed"]
    return [line, ""], missed if over else []


def perplexities(rows: Sequence[tuple[str, float, float]]) -> tuple[list[str], list[str]]:
    """rows: (bundle, on the CPU, on the GPU)."""
    shown = [[name, f"{cpu:.4f}", f"{gpu:.4f}", f"{gpu / cpu - 1:+.3%}"] for name, cpu, gpu in rows]
    return table(["bundle", "cpu backend", "cuda backend", "difference"], shown), []


def steps(rows: Sequence[Sequence[str]]) -> list[str]:
    """rows: (step, what became of it, seconds, why)."""
    return table(["step", "result", "seconds", "reason"], rows)


def whole(head: Sequence[str], parts: dict[str, list[str]], failed: Sequence[str], missed: Sequence[str]) -> str:
    """The document: `parts` by their titles."""
    lines = ["# On a GPU", "", "Written by `make gpu-check`.", "", *head, ""]
    for title, words in (("Failed", failed), ("Targets missed", missed)):
        lines += [f"## {title}", "", *(f"* {w}" for w in words), ""] if words else []
    for title, text in parts.items():
        lines += [f"## {title}", "", *text]
    return "\n".join(lines).rstrip() + "\n"
