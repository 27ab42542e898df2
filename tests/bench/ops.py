"""Every op of a bundle on the native backend, beside what this machine's memory and arithmetic allow.

    python tests/bench/ops.py BUNDLE... [--threads N] [--tokens 1,128] [--state-dtype f16] [--set avx2]

Runs a decode step and a prefill chunk, times each op where it stands in the model, and adds up equal ones: microseconds each, GB/s
of weights and states, G multiply-adds a second, and the percentage of the least time that the measured read bandwidth and the
measured arithmetic peak allow (`%`: near 100 is done, and what has a large share and a low % is what to work on next).  Numbers above
100 % are weights that were still in a cache.  Without a bundle it takes the two small ones of tests/golden.  The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, from anywhere

from quamba_edge.backends import cpu  # noqa: E402
from quamba_edge.bundle.reader import Bundle  # noqa: E402
from quamba_edge.profile.costs import Cost, cost_of  # noqa: E402
from quamba_edge.runtime.plan import Arena  # noqa: E402
from quamba_edge.runtime.session import Engine  # noqa: E402

REPEATS = {1: 200, 128: 20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path, default=sorted((ROOT / "tests" / "golden").glob("*.qedge")))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", default="1,128")
    parser.add_argument("--state-dtype", default="f16")
    parser.add_argument("--set")
    args = parser.parse_args()
    if reason := cpu.why_not():
        print(json.dumps({"skipped": reason}))
        return
    backend = cpu.CpuBackend(args.threads, args.set)
    bandwidth = cpu.read_bandwidth(backend.threads)
    dots, fmas = (backend.threads * rate for rate in cpu.peak(backend.instruction_set))
    print(
        f"{backend.instruction_set}, {backend.threads} threads: reads {bandwidth / 1e9:.1f} GB/s, at most "
        f"{dots / 1e9:.0f} G int8 and {fmas / 1e9:.0f} G float multiply-adds a second"
    )
    ceilings = {"bandwidth": bandwidth, "dots": dots, "fmas": fmas}
    rows = []
    for path in args.bundles:
        for tokens in map(int, args.tokens.split(",")):
            rows += measure(path, tokens, backend, args.state_dtype, ceilings)
    print(json.dumps({"threads": backend.threads, "set": backend.instruction_set, **ceilings, "ops": rows}))


def measure(path: Path, tokens: int, backend: cpu.CpuBackend, state_dtype: str, ceilings: dict) -> list[dict]:
    """Prints and returns a row for every kind of op."""
    with Bundle.open(path, verify=False) as bundle:
        engine = Engine(bundle, backend, state_dtype)
        program = engine.program(1, tokens, "last")
        recorded = backend.record(program, bundle, Arena(backend, [program]).bind(program), engine.slot(1).state.blocks)
        for _ in range(3):
            backend.run(recorded)
        repeats = REPEATS.get(tokens, 50)
        whole = []
        for _ in range(repeats):
            backend.run(recorded)
            whole.append(backend.elapsed())
        seconds = np.median([backend.times(recorded) for _ in range(repeats)], axis=0)
        kinds: dict[str, list] = {}
        for step, spent in zip(program.steps, seconds, strict=True):
            place = step.site.split(".")[-1] if step.op.name.startswith("linear") else ""
            row = kinds.setdefault(f"{step.op.name} {place}".strip(), [0, 0.0, Cost()])
            row[0], row[1], row[2] = row[0] + 1, row[1] + spent, row[2] + cost_of(step, bundle.manifest, state_dtype)
        everything = sum((row[2] for row in kinds.values()), Cost())
        print(
            f"\n{path.name}, {tokens} tokens a step: {tokens / np.median(whole):.1f} tokens/s, "
            f"{everything.memory / np.median(whole) / 1e9:.1f} GB/s"
        )
        print(f"{'op':26s} {'steps':>5s} {'us each':>9s} {'share':>6s} {'GB/s':>7s} {'G madd/s':>9s} {'%':>5s}")
        rows = []
        for name, (steps, spent, cost) in sorted(kinds.items(), key=lambda item: -item[1][1]):
            row = {
                "bundle": path.name,
                "tokens": tokens,
                "op": name,
                "steps": steps,
                "us": 1e6 * spent / steps,
                "share": spent / seconds.sum(),
                "gbps": cost.memory / spent / 1e9,
                "gmadds": (cost.dots + cost.fmas) / spent / 1e9,
                "percent": 100 * cost.seconds(**ceilings) / spent,
            }
            rows.append(row)
            print(
                f"{name:26s} {steps:5d} {row['us']:9.2f} {row['share']:6.1%} {row['gbps']:7.1f} {row['gmadds']:9.1f} {row['percent']:5.0f}"
            )
        return rows


if __name__ == "__main__":
    main()
