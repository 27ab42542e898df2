"""`quamba-edge verify`: is this file what was packed, and does this machine compute what it should?

    hashes of every tensor → golden prompts through the backend → every op of the first prompt against the reference

The first step blames the file (HashMismatch), the second the whole, the third the op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quamba_edge.backends import open_backend
from quamba_edge.backends.base import Backend
from quamba_edge.bundle.reader import Bundle
from quamba_edge.ops.program import Program
from quamba_edge.runtime.plan import Arena
from quamba_edge.runtime.session import Engine, Session
from quamba_edge.runtime.state import LiveState

# How far a logit may be from the recorded one.  Backends sum in different orders; where that tips an int8 rounding, a
# logit moves by about a hundredth.  A wrong weight or scale moves it by whole units.
LOGIT_ABS, LOGIT_REL = 0.05, 0.02
# The same for one op given equal inputs, relative to its largest result: coarse, to name the op; the project's tests are
# strict.  A result in codes may be one off, in at most this share of places.
OP_REL, CODE_SHARE = 2e-3, 0.01
LONGEST = 16  # tokens of the prompt that the ops are compared on: a chunk size of every program

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class VerifyResult:
    """differences: one sentence each, empty when everything is as it should be.

    near_ties: golden positions where another token leads by less than the tolerance, which rounding may decide.
    ops: steps compared with the reference; None when the backend is the reference, so that there is nothing to compare.
    """

    ok: bool
    bundle: str
    digest: str
    backend: str
    tensors: int
    prompts: int
    tokens: int
    near_ties: int
    ops: int | None
    differences: list[str]


def verify(
    path: Path,
    backend: str | Backend = "auto",
    *,
    threads: int | None = None,
    progress: Progress = lambda done, total, text: None,
) -> VerifyResult:
    """Check a bundle on a backend.  HashMismatch (naming the tensor) and other BadBundles are raised, differences listed."""
    with Bundle.open(Path(path)) as bundle:
        progress(0, 3, "hashes")
        bundle.verify()
        progress(1, 3, "golden prompts")
        engine = Engine(bundle, backend, threads=threads)
        golden, differences, near = bundle.manifest.golden, [], 0
        for number, entry in enumerate(golden, 1):
            found, ties = compare_golden(Session(engine), entry, f"golden prompt {number}")
            differences += found
            near += ties
        if not golden:
            differences.append(
                "the bundle records no golden prompt, so nothing shows that it computes what was packed: pack it again"
            )
        progress(2, 3, "ops")
        ops = None
        if engine.backend.name != "reference" and golden:
            tokens = np.asarray(golden[0]["prompt"][:LONGEST], np.int32)
            compared = list(compare_ops(engine, open_backend("reference"), tokens))
            ops, differences = len(compared), differences + [c for c in compared if c]
        progress(3, 3, "done")
        return VerifyResult(
            ok=not differences,
            bundle=str(path),
            digest=bundle.digest,
            backend=engine.backend.name,
            tensors=len(bundle.manifest.tensors),
            prompts=len(golden),
            tokens=sum(len(g["tokens"]) for g in golden),
            near_ties=near,
            ops=ops,
            differences=differences,
        )


def compare_golden(session: Session, entry: dict[str, Any], name: str) -> tuple[list[str], int]:
    """(differences, near ties) of one prompt.

    The recorded tokens are fed whatever is found, so that one difference does not make all later ones; the first of each
    kind is told.
    """
    differences, near = [], 0
    logits = session.prefill(entry["prompt"])
    for i, recorded in entry["top"]:
        off = abs(float(logits[i]) - recorded) if i < len(logits) else float("inf")
        if not off <= _allowed(recorded):
            differences.append(
                f"{name}, position 0: token {i} has logit {logits[i] if i < len(logits) else 'none'!s:.8}, "
                f"expected {recorded:.4f} within {_allowed(recorded):.3f}"
            )
            break
    for position, expected in enumerate(entry["tokens"]):
        found = int(np.argmax(logits)) if not np.isnan(logits).any() else None
        if found != expected:
            lead = (
                float(logits[found] - logits[expected])
                if found is not None and expected < len(logits)
                else float("inf")
            )
            if not lead <= _allowed(float(logits[expected]) if expected < len(logits) else 0.0):
                said = "NaN" if found is None else f"token {found}, {lead:.3f} ahead"
                differences.append(f"{name}, position {position}: found {said}, expected token {expected}")
                break
            near += 1
        if position + 1 < len(entry["tokens"]):
            logits = session.decode(expected)
    return differences, near


def _allowed(logit: float) -> float:
    return LOGIT_ABS + LOGIT_REL * abs(logit)


def compare_ops(engine: Engine, reference: Backend, tokens: np.ndarray) -> Iterator[str | None]:
    """For every step of the program on `tokens`: None, or how the backend's result differs from the reference's.

    Both get the reference's inputs, so a difference belongs to the op that is named and to none before it.
    """
    program = engine.program(1, len(tokens), "last")
    sides = [_Side(backend, program, engine) for backend in (reference, engine.backend)]
    exact, other = sides
    exact.put(("buffer", "tokens"), tokens)
    for index, step in enumerate(program.steps):
        given = {(r.kind, r.name) for r in step.args.values() if r.kind != "weight"}
        for key in sorted(given):
            other.put(key, exact.get(key))
        for side in sides:
            side.run(index)
        results = {(r.kind, r.name) for a in step.op.results if (r := step.args[a.name]).kind != "weight"}
        found = [_difference(exact.get(key), other.get(key), key[1]) for key in sorted(results)]
        wrong = next((f for f in found if f), None)
        yield f"{step.op.name} at {step.site}: {wrong}" if wrong else None


class _Side:
    """One backend's copy of a program's memory, to run its steps one by one."""

    def __init__(self, backend: Backend, program: Program, engine: Engine) -> None:
        self.backend, self.program, self.weights = backend, program, engine.bundle
        self.buffers = Arena(backend, [program]).bind(program)
        self.states = LiveState(backend, program.states, program.sequences, engine.state_dtype).blocks

    def _block(self, key: tuple[str, str]) -> Any:
        return (self.buffers if key[0] == "buffer" else self.states)[key[1]]

    def put(self, key: tuple[str, str], array: np.ndarray) -> None:
        self.backend.upload(self._block(key), array)

    def get(self, key: tuple[str, str]) -> np.ndarray:
        return self.backend.download(self._block(key))

    def run(self, index: int) -> None:
        p = self.program
        single = Program(p.sequences, p.tokens, p.buffers, p.states, (p.steps[index],))
        self.backend.run(self.backend.record(single, self.weights, self.buffers, self.states))
        self.backend.sync()


def _difference(expected: np.ndarray, found: np.ndarray, name: str) -> str | None:
    """What is wrong with a result, or None; f16 results round to one part in 2048, which OP_REL allows."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    off = np.abs(a - b)
    if np.issubdtype(expected.dtype, np.integer):
        share = float((off > 0).mean())
        wrong = off.max(initial=0) > 1 or share > CODE_SHARE
        return f"{name} differs in {share:.2%} of its codes, by up to {off.max():.0f}" if wrong else None
    largest = float(np.abs(a).max(initial=0))
    if np.isfinite(b).all() and off.max(initial=0) <= OP_REL * largest + 1e-6:
        return None
    place = int(np.argmax(np.where(np.isfinite(off), off, np.inf)))
    return f"{name}[{place}] is {b.flat[place]:.6g}, expected {a.flat[place]:.6g}"


def summary(result: VerifyResult) -> str:
    """A few lines for people."""
    ops = (
        "nothing to compare ops with: the backend is the reference"
        if result.ops is None
        else f"{result.ops} ops as the reference"
    )
    ties = f", {result.near_ties} near ties" if result.near_ties else ""
    if result.ok:
        return (
            f"{result.bundle}: {result.tensors} tensors as they were written; {result.prompts} golden prompts, "
            f"{result.tokens} tokens as recorded{ties} on the {result.backend} backend; {ops}"
        )
    return "\n".join(result.differences)
