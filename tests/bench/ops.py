"""Every op of a bundle beside what this machine's memory and arithmetic allow: `quamba-edge bench --profile` of several bundles.

    python tests/bench/ops.py BUNDLE... [--threads N] [--tokens 1,128] [--state-dtype f16] [--backend B]

Without a bundle it takes the two small ones of tests/golden.  QUAMBA_CPU=avx2 in the environment takes another instruction set than
the fastest.  The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, from anywhere

from quamba_edge.apps import bench_profile  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path, default=sorted((ROOT / "tests" / "golden").glob("*.qedge")))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", default="1,128")
    parser.add_argument("--state-dtype", default="f16")
    parser.add_argument("--backend", default="auto")
    args = parser.parse_args()
    tokens = [int(n) for n in args.tokens.split(",")]
    given = {"backend": args.backend, "state_dtype": args.state_dtype, "threads": args.threads, "tokens": tokens}
    found = [bench_profile.profile(path, **given) for path in args.bundles]
    print("\n\n".join(bench_profile.text(p) for p in found))
    print(json.dumps([p.to_json() for p in found]))


if __name__ == "__main__":
    main()
