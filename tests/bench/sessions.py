"""What remembered sessions save: tokens read in ten turns, the size of a saved session, and restoring against reading again.

python tests/bench/sessions.py [BUNDLE] [--backend B] [--threads N] [--tokens 8192]

Random weights serve as well as trained ones: times do not depend on what is said.  Reading is the least of 3, the others the median of 5.  The last line of stdout is JSON.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, from anywhere

import quamba_edge  # noqa: E402
from quamba_edge.runtime import saved  # noqa: E402
from quamba_edge.runtime.conversation import Conversation  # noqa: E402
from quamba_edge.runtime.model import Model  # noqa: E402
from quamba_edge.runtime.snapshots import NOTHING  # noqa: E402

QUESTIONS = ["Tell me a story about a dog named Tim.", *["What did Tim do then?"] * 9]
REPEATS = 5


def turns(model: Model) -> list[dict]:
    """Ten turns of 40 tokens each: what was read in each against what was new in it, by the tokenizer."""
    talk, rows = Conversation(model, raw=not model.bundle.chat_template), []
    for question in QUESTIONS:
        before = talk.session.count
        text = question if not talk.templated else model.next_turn(question)
        first = {"role": "user", "content": question}
        fresh = len(model.tokenizer.encode(text)) if before else len(model.ids([first] if talk.templated else question))
        cut = len(talk._unread)  # the last token of an answer that was cut off has not been read yet
        last = list(talk.ask(question, max_tokens=40))[-1]
        row = {
            "prompt": last.prompt_tokens,
            "reused": last.reused_tokens,
            "prefilled": last.prefilled_tokens,
            "new": fresh + cut,
        }
        rows.append({**row, "ttft_ms": round(last.ttft_ms, 1)})
    return rows


def spent(call) -> tuple[float, object]:
    began = time.perf_counter()
    found = call()
    return time.perf_counter() - began, found


def sizes(model: Model, folder: Path) -> dict[str, int]:
    """Bytes of a saved session after 100 and after 10,000 tokens."""
    session, found = model.session(NOTHING), {}
    ids = np.random.default_rng(0).integers(0, model.engine.vocab_size, 10_000)
    for begin, end in ((0, 100), (100, 10_000)):
        session.prefill(ids[begin:end])
        found[str(end)] = saved.save(session, folder / "size.qsession").nbytes
    return found


def restoring(model: Model, folder: Path, tokens: int) -> dict[str, float | bool]:
    """Seconds to read that many tokens, to save their session, and to load it until its next logits are there."""
    ids = np.random.default_rng(1).integers(0, model.engine.vocab_size, tokens)
    path = folder / "long.qsession"
    model.session().prefill(ids[:300])  # plans are recorded, weights are in memory
    plain, kept = [], []
    for _ in range(3):  # in turns, and the least of each: other work on the machine comes and goes
        session, marked = model.session(NOTHING), model.session()
        took, logits = spent(lambda s=session: s.prefill(ids))
        plain.append(took)
        kept.append(spent(lambda s=marked: s.prefill(ids))[0])
    writes = [spent(lambda: saved.save(session, path))[0] for _ in range(REPEATS)]
    loads = [spent(lambda: saved.load(path, model.engine)) for _ in range(REPEATS)]
    return {
        "prefill_s": min(plain),
        "prefill_with_snapshots_s": min(kept),
        "snapshots": len(marked.snapshots.counts()),
        "snapshot_bytes": marked.snapshots.nbytes,
        "save_s": statistics.median(writes),
        "restore_s": statistics.median(t for t, _ in loads),
        "logits_bit_equal": all((s.logits == logits).all() for _, s in loads),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", nargs="?", type=Path, default=ROOT / "tests" / "golden" / "mamba2.qedge")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=8192)
    args = parser.parse_args()
    model = quamba_edge.load(args.bundle, args.backend, threads=args.threads)
    rows = turns(model)
    print("turn  prompt  reused  prefilled  new in it   first token")
    for i, r in enumerate(rows, 1):
        print(f"{i:4}  {r['prompt']:6}  {r['reused']:6}  {r['prefilled']:9}  {r['new']:9}  {r['ttft_ms']:8.1f} ms")
    with tempfile.TemporaryDirectory() as name:
        size = sizes(model, Path(name))
        times = restoring(model, Path(name), args.tokens)
    print(f"saved session: {size['100']} bytes after 100 tokens, {size['10000']} after 10,000")
    print(
        f"{args.tokens} tokens: read in {times['prefill_s']:.2f} s ({times['prefill_with_snapshots_s']:.2f} with "
        f"{times['snapshots']} snapshots), saved in {1000 * times['save_s']:.1f} ms, restored in {1000 * times['restore_s']:.1f} ms"
    )
    assert all(r["prefilled"] == r["new"] for r in rows) and size["100"] == size["10000"] and times["logits_bit_equal"]
    facts = {"bundle": args.bundle.name, "backend": model.engine.backend.name, "machine": platform.machine()}
    print(json.dumps({**facts, "tokens": args.tokens, "turns": rows, "bytes": size, **times}))


if __name__ == "__main__":
    main()
