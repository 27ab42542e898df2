"""What `plan` predicts beside what happens on this machine, and beside published figures for an Orin Nano.

    python tests/bench/plan_check.py [BUNDLE...] [--threads N] [--rounds 5]

Each bundle runs in a process of its own, which loads it, reads 300 tokens and writes some: its peak memory is compared with the sum of
the parts.  Then, round by round, it measures this machine's read bandwidth and, right after, the speed of decoding: the prediction from
that bandwidth is compared with that speed, since these machines change from minute to minute.  Without a bundle it takes the two small ones
of tests/golden, whose weights stay in a cache: they decode faster than predicted.  The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, from anywhere

# Orin Nano 8GB: milliseconds a token, and to the first of 1024.  Mamba2-8B: Quamba2, table 5, power mode not stated; taken as 15W, whose
# 68 GB/s is the only bandwidth that the figures suit without beating every other program there.  Mamba-2.8B: as others quote Quamba.
PUBLISHED = (
    ("mamba2-8b", "w4a8", "i8", "decode", 79.91),
    ("mamba2-8b", "w4a16", "f16", "decode", 78.77),
    ("mamba2-8b", "w4a8", "i8", "prefill", 2088.03),
    ("mamba2-8b", "w4a16", "f16", "prefill", 2316.23),
    ("mamba-2.8b", "w8a8", "i8", "decode", 60.17),
    ("mamba-2.8b", "w16a16", "f16", "decode", 103.56),
)
TOKENS = 48  # decoded in a round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path, default=sorted((ROOT / "tests" / "golden").glob("*.qedge")))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.bundles[0], args.threads, args.rounds)))
        return
    from quamba_edge.backends import cpu

    if reason := cpu.why_not():
        print(json.dumps({"skipped": reason}))
        return
    rows = [beside(path, args) for path in args.bundles]
    published = [against(*row) for row in PUBLISHED]
    print(json.dumps({"here": rows, "published": published}))


def beside(path: Path, args: argparse.Namespace) -> dict:
    """A bundle's row: predicted, measured, and how far off the prediction is."""
    from quamba_edge.apps import plan
    from quamba_edge.bundle.reader import Bundle
    from quamba_edge.profile import predict

    words = [sys.executable, __file__, str(path), "--child", "--rounds", str(args.rounds)]
    words += ["--threads", str(args.threads)] if args.threads else []
    found = json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
    with Bundle.open(path, verify=False) as bundle:
        manifest = bundle.manifest
    parts = predict.memory(manifest, process_bytes=plan.process_bytes())
    predicted = [
        predict.speed(manifest, predict.cpu_machine(b, found["dots"], found["floats"])).decode_tps
        for b in found["bandwidth"]
    ]
    ratios = [p / m for p, m in zip(predicted, found["decode_tps"], strict=True)]
    need = sum(p.bytes for p in parts)
    row = {
        "bundle": path.name,
        "rss_predicted": need,
        "rss_measured": found["peak"],
        "rss_off_pct": off(need / found["peak"]),
    }
    row |= {"decode_predicted": median(predicted), "decode_measured": median(found["decode_tps"])}
    row |= {"decode_off_pct": off(median(ratios)), "decode_off_range": [off(min(ratios)), off(max(ratios))]}
    print(
        f"{path.name:26s} MB {need / 1e6:7.1f} of {found['peak'] / 1e6:7.1f} ({row['rss_off_pct']:+.1f} %)  decode {row['decode_predicted']:7.1f} "
        f"of {row['decode_measured']:7.1f} tokens/s ({row['decode_off_pct']:+.1f} %, rounds {off(min(ratios)):+.0f} .. {off(max(ratios)):+.0f})",
        flush=True,
    )
    return row


def off(ratio: float) -> float:
    return 100 * (ratio - 1)


def measure(path: Path, threads: int | None, rounds: int) -> dict:
    """In a process of its own: peak memory, and in turns the bandwidth and the tokens a second."""
    from quamba_edge.backends import cpu
    from quamba_edge.profile.memory import peak_rss
    from quamba_edge.runtime.model import load
    from quamba_edge.runtime.snapshots import NOTHING

    model = load(path, "cpu", threads=threads)
    session, vocab = model.session(NOTHING), model.bundle.manifest.vocab_size
    session.prefill([i * 7919 % vocab for i in range(1, 301)])
    for i in range(8):
        session.decode(i)
    out: dict = {"peak": peak_rss(), "bandwidth": [], "decode_tps": []}
    backend = model.engine.backend
    assert isinstance(backend, cpu.CpuBackend)
    dots, floats = cpu.peak(backend.instruction_set)
    out |= {"dots": dots * backend.threads, "floats": floats * backend.threads}
    for _ in range(rounds):
        before = cpu.read_bandwidth(backend.threads, repeats=3)
        session.decode(1)
        began = time.perf_counter()
        for i in range(TOKENS):
            session.decode(i)
        spent = time.perf_counter() - began
        after = cpu.read_bandwidth(backend.threads, repeats=3)
        out["bandwidth"].append((before + after) / 2)
        out["decode_tps"].append(TOKENS / spent)
    return out


def against(model: str, recipe: str, state: str, what: str, published: float) -> dict:
    """A published figure's row, milliseconds."""
    from quamba_edge.apps import plan

    speed = plan.plan(model, "orin-nano-8gb", recipe=recipe, state_dtype=state).speeds[0]
    predicted = 1000 / speed.decode_tps if what == "decode" else 1024e3 / speed.prefill_tps
    print(
        f"{model:12s} {recipe:7s} {what:8s} {speed.mode}: {predicted:8.1f} ms of {published:8.1f} published ({off(predicted / published):+.1f} %)"
    )
    row = {
        "model": model,
        "recipe": recipe,
        "what": what,
        "mode": speed.mode,
        "predicted_ms": predicted,
        "published_ms": published,
    }
    return {**row, "off_pct": off(predicted / published)}


if __name__ == "__main__":
    main()
