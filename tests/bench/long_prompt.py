"""Memory while a long prompt is read: it must not grow with the prompt.

    python tests/bench/long_prompt.py [BUNDLE...] [--tokens 65536] [--backend cpu] [--state-dtype f16]

Reads random tokens in one prompt, in pieces so that memory can be looked at in between, and prints resident memory (RssAnon: what
the process made; RssFile: the mapped bundle and libraries) at every eighth.  Without a bundle it takes the small ones of
tests/golden.  The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, from anywhere

from quamba_edge.bundle.reader import Bundle  # noqa: E402
from quamba_edge.runtime.session import Engine, Session  # noqa: E402

PIECES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path, default=sorted((ROOT / "tests" / "golden").glob("*.qedge")))
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--state-dtype", default="f16")
    args = parser.parse_args()
    print(json.dumps([measure(path, args) for path in args.bundles]))


def measure(path: Path, args: argparse.Namespace) -> dict:
    with Bundle.open(path) as bundle:
        engine = Engine(bundle, args.backend, args.state_dtype)
        session = Session(engine)
        ids = np.random.default_rng(0).integers(0, engine.vocab_size, args.tokens)
        session.prefill(ids[:128])
        session.reset()  # the plans are recorded and the weights mapped
        print(f"{path.name}, {path.stat().st_size / 1e6:.2f} MB, {engine.backend.name} backend, {args.tokens} tokens")
        seen, began = [resident()], time.perf_counter()
        for piece in np.array_split(ids, PIECES):
            session.prefill(piece)
            seen.append(resident())
            print(f"  after {len(session.tokens):6d}: RssAnon {seen[-1][0]:.2f} MB, RssFile {seen[-1][1]:.2f} MB")
        speed = args.tokens / (time.perf_counter() - began)
        state = sum(array.nbytes for array in session.state().arrays.values())
        print(f"  {speed:.0f} tokens/s; the state is {state / 1e6:.2f} MB")
    growth = [after - before for before, after in zip(seen[1], seen[-1], strict=True)]
    return {
        "bundle": path.name,
        "bytes": path.stat().st_size,
        "tokens": args.tokens,
        "rss_mb": [[round(v, 2) for v in s] for s in seen],
        "growth_mb": [round(v, 2) for v in growth],
        "tokens_per_second": speed,
        "backend": engine.backend.name,
    }


def resident() -> tuple[float, float]:
    """(anonymous, of files) resident megabytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(fields[name].split()[0]) * 1024 / 1e6 for name in ("RssAnon", "RssFile"))


if __name__ == "__main__":
    main()
