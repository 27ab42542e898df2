"""What watching costs: percent of one core that the sampler thread takes, at 10 and 20 Hz, for each reader.

    python tests/bench/sampler.py [--seconds 10]

The readers are this machine's own, and a Jetson's on the recorded trees (same number of files; an Orin's cores are slower, and its
INA3221 answers over I2C, which waits but does not compute).  Measured as CPU time of the thread alone; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, from anywhere

from quamba_edge import telemetry  # noqa: E402
from quamba_edge.telemetry import Recorder  # noqa: E402

TREES = Path(__file__).resolve().parents[1] / "fake_sys"


def cost(root: Path, hz: float, seconds: float) -> dict[str, float | int | str]:
    """One run; `late_ms` is the longest time between two samples beyond the period."""
    source = telemetry.best(root)
    with Recorder(source, hz=hz) as recorder:
        time.sleep(seconds)
    source.close()
    times = [s.t_ns for s in recorder.samples()]
    gaps = [(b - a) / 1e6 for a, b in zip(times[:-2], times[1:-1])]  # the last sample is taken when it is told to stop
    assert recorder.error is None and recorder.cost_pct is not None
    return {
        "tree": "this machine" if root == Path("/") else root.name,
        "source": source.name,
        "hz": hz,
        "samples": len(times),
        "core_pct": round(recorder.cost_pct, 3),
        "late_ms": round(max(gaps) - 1000 / hz, 2),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seconds", type=float, default=5.0)
    seconds = arguments.parse_args().seconds
    rows = []
    print(f"{'files of':14}{'source':>8}{'Hz':>5}{'samples':>9}{'% of a core':>13}{'latest, ms':>12}")
    for root in (Path("/"), *(TREES / name for name in ("jp5", "jp62", "jp72"))):
        for hz in (10.0, 20.0):
            rows.append(row := cost(root, hz, seconds))
            print(
                f"{row['tree']:14}{row['source']:>8}{hz:5.0f}{row['samples']:9}{row['core_pct']:13.2f}{row['late_ms']:12.1f}"
            )
    print(json.dumps({"sampler": rows, "worst_core_pct": max(float(r["core_pct"]) for r in rows)}))


if __name__ == "__main__":
    main()
