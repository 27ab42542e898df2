"""What f16 and int8 states do to a model that reads for long: KL from the same bundle with f32 states, as the text grows; run by hand.

    python tests/bench/state_drift.py [BUNDLE...] --text TEXT [--tokens 65536] [--layer-tokens 8192] [--plot FILE.png] [--json FILE]

One text of that many tokens (documents one after another, from the beginning again where it ends) is read by sessions that differ
in nothing but the dtype of their states, in step with each other: token by token, where a state is rounded at every token, and
in chunks of 128, as a prompt is read.  Printed is the mean KL divergence from the f32 session's next-token distribution, by
position, and the mean of nll - nll of f32.  Then layer by layer: all states f32 but that layer's, which is int8.

Without a bundle it takes the small ones of tests/golden and a text of random tokens, only to try the script.  The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, from anywhere

from quamba_edge.apps.evaluate import encode, read_text  # noqa: E402
from quamba_edge.bundle.reader import Bundle  # noqa: E402
from quamba_edge.runtime import state  # noqa: E402
from quamba_edge.runtime.session import Engine, Session  # noqa: E402

CHUNK = 128
WAYS = {"token by token": 1, "chunks of 128": CHUNK}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokens", type=int, help="of the text (65536; 1024 without one)")
    parser.add_argument("--layer-tokens", type=int, default=8192, help="of it for the layers, token by token (8192)")
    parser.add_argument("--dtypes", default="f16,i8", help="to compare with f32 (f16,i8)")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    count = args.tokens or (65536 if args.text else 1024)
    told = []
    for path in args.bundles or sorted((ROOT / "tests" / "golden").glob("*.qedge")):
        with Bundle.open(path) as bundle:
            told.append(drift(bundle, path.stem, tokens(bundle, args.text, count), args))
        if args.json:
            args.json.write_text(json.dumps(told, indent=1))
    if args.plot:
        plot(told, args.plot)
    print(json.dumps(told))


def tokens(bundle: Bundle, text: Path | None, count: int) -> np.ndarray:
    if text is None:
        return np.random.default_rng(0).integers(0, bundle.manifest.vocab_size, count)
    return np.resize(encode(bundle.tokenizer_json(), read_text(text), bundle.manifest.vocab_size, str(text)), count)


def drift(bundle: Bundle, name: str, ids: np.ndarray, args: argparse.Namespace) -> dict:
    """Everything of one bundle, told while it is found."""
    others, n_layer = args.dtypes.split(","), bundle.manifest.config["n_layer"]
    out: dict = {"bundle": name, "tokens": len(ids), "curves": [], "layers": []}
    for way, size in WAYS.items():
        engines = [engine(bundle, args, dtype) for dtype in ("f32", *others)]
        kl, lost = compared(engines, ids, size)
        ends = octaves(len(ids))
        print(f"{name}, {way}, {engines[0].backend.name} backend: KL from f32 states, 1e-3 nats, up to position {ends}")
        for i, dtype in enumerate(others):
            curve = [float(part.mean()) for part in np.split(kl[i], ends[:-1])]
            out["curves"].append({"way": way, "dtype": dtype, "ends": ends, "kl": curve, "mean_kl": float(kl[i].mean()),
                                  "loss": float(lost[i].mean())})  # fmt: skip
            said = " ".join(f"{1000 * v:.3f}" for v in curve)
            print(f"  {dtype}: {said}; all {1000 * kl[i].mean():.3f}, loss {100 * lost[i].mean():+.3f} %", flush=True)
    few = ids[: args.layer_tokens]
    engines = [engine(bundle, args, "f32"), *(engine(bundle, args, "f32", layer) for layer in range(n_layer))]
    kl, _ = compared(engines, few, 1)
    out["layers"] = kl.mean(axis=1).tolist()
    said = " ".join(f"{1000 * v:.3f}" for v in out["layers"])
    print(f"  int8 in one layer alone, {len(few)} tokens one by one: {said}", flush=True)
    return out


def engine(bundle: Bundle, args: argparse.Namespace, dtype: str, layer: int | None = None) -> Engine:
    """An engine whose states are `dtype`, but for a `layer` with int8."""
    made, plain = Engine(bundle, args.backend, dtype, args.threads), state.dtype_of
    mine = f"layers.{layer}.ssm"
    with patch.object(state, "dtype_of", lambda spec, chosen: plain(spec, "i8" if spec.name == mine else chosen)):
        made.slot(1)  # its blocks keep their dtypes; every plan is bound to them
    made.slot(1).state.write = lambda _: None  # type: ignore[method-assign]  # zeros as allocated: one session, never reset
    return made


def compared(engines: list[Engine], ids: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(kl, lost) of every engine but the first against the first, each (engines - 1, tokens - 1)."""
    sessions, vocabulary = [Session(e) for e in engines], engines[0].vocab_size
    kl, lost = np.empty((2, len(engines) - 1, len(ids) - 1))
    for start in range(0, len(ids) - 1, size):
        piece, targets = ids[start : start + size], ids[start + 1 : start + size + 1]
        span = slice(start, start + len(targets))
        for i, session in enumerate(sessions):
            q = session.read(piece)[: len(targets), :vocabulary].astype(np.float64)
            q -= q.max(axis=1, keepdims=True)
            q -= np.log(np.exp(q).sum(axis=1, keepdims=True))
            nll = -q[np.arange(len(targets)), targets]
            if i == 0:
                p, base = q, nll
            else:
                kl[i - 1, span], lost[i - 1, span] = np.einsum("tv,tv->t", np.exp(p), p - q), nll - base
    return kl, lost


def octaves(count: int) -> list[int]:
    """256, 512, 1024 ... and `count`: ends of the spans of positions that are averaged."""
    ends = [256]
    while ends[-1] * 2 < count:
        ends.append(ends[-1] * 2)
    return [*(e for e in ends if e < count), count]


def plot(told: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(told), 4), layout="constrained")
    for axes, one in zip(figure.subplots(1, len(told), sharey=True, squeeze=False)[0], told, strict=True):
        for curve in one["curves"]:
            style = {"marker": "o" if curve["way"] == "token by token" else "s", "markersize": 4}
            style |= {"color": {"i8": "tab:red", "f16": "tab:blue"}.get(curve["dtype"], "tab:gray")}
            style |= {"linestyle": "-" if curve["way"] == "token by token" else "--"}
            axes.plot(curve["ends"], np.multiply(curve["kl"], 1000), label=f"{curve['dtype']}, {curve['way']}", **style)
        axes.set(title=one["bundle"], xlabel="tokens read", xscale="log", yscale="log")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("KL from f32 states, 1e-3 nats a token")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
