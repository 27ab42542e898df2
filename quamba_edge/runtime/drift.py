"""What int8 states cost a bundle: measured by `pack`, recorded in the manifest, and what `--state-dtype auto` goes by.

An int8 state is rounded at every token, so its error is measured where it is largest, token by token; the rounding does not
add up over a text (docs/numerics.md has curves to 65,536 tokens), so that short windows tell.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quamba_edge.runtime.engine import Engine

WINDOWS = 8  # read side by side
STEPS = 128  # tokens of each


def state_drift(bundle: Any, windows: np.ndarray, dtype: str = "i8", backend: str = "reference") -> dict[str, Any]:
    """{"kl": mean KL divergence in nats a token, "tokens": how many} of the next-token distributions with states of `dtype` from
    those with f32 states, on tokens (S, L) read one by one from empty states."""
    ids = np.asarray(windows)[:WINDOWS, :STEPS]
    plans = [_one_by_one(bundle, backend, kind, len(ids)) for kind in ("f32", dtype)]
    total = 0.0
    for t in range(ids.shape[1]):
        p, q = (_log_probabilities(plan, ids[:, t : t + 1], bundle.manifest.vocab_size) for plan in plans)
        total += float(np.sum(np.exp(p) * (p - q)))
    return {"kl": total / ids.size, "tokens": int(ids.size)}


def _one_by_one(bundle: Any, backend: str, dtype: str, sequences: int) -> Any:
    engine = Engine(bundle, backend, dtype)
    engine.slot(sequences).state.write(None)
    return engine.plan(sequences, 1, "last")


def _log_probabilities(plan: Any, tokens: np.ndarray, vocabulary: int) -> np.ndarray:
    """f64 (S, vocabulary), after one more token (S, 1)."""
    plan.run(tokens)
    logits = plan.logits().reshape(len(tokens), -1)[:, :vocabulary].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
