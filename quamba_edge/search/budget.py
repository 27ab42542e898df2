"""What an assignment costs, and how much it may: layers with 16-bit activations, bytes, time or energy of a token.

Layers of a model are alike, so a cost is a sum over places, and one layer's figure serves all of them.  Times come from what
`bench --profile --json` measured on the device, op by op, or from profile/predict.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quamba_edge import models
from quamba_edge.bundle.outline import outline, weight_bytes
from quamba_edge.errors import BadText, BadUsage
from quamba_edge.ops.program import Step
from quamba_edge.profile import predict
from quamba_edge.profile.costs import cost_of
from quamba_edge.runtime.engine import CHUNKS
from quamba_edge.search.space import ENDS, Choice, Space

Price = Callable[[Step, Any, int], float]  # seconds of a step of a program of this manifest, for so many tokens

UNITS = {
    "a16": {"": 1.0},
    "bytes": {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9},
    "decode": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "prefill": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "energy": {"j": 1.0, "mj": 1e-3},
}
WORDS = {
    "a16": "layers with 16-bit activations",
    "bytes": "bytes of weights in the file",
    "decode": "seconds of a decode step",
    "prefill": f"seconds of a chunk of {CHUNKS[0]} tokens",
    "energy": "joules of a decoded token",
}


@dataclass(frozen=True)
class Budget:
    """At most `most` of `kind`, in the base unit: layers, bytes, seconds, joules."""

    kind: str
    most: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """From "a16=4", "bytes=3.1MB", "decode=2.5ms", "prefill=80ms", "energy=40mJ".  BadUsage for anything else."""
        kind, sign, value = text.strip().lower().partition("=")
        found = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*([a-z]*)", value.strip())
        if kind not in UNITS or not sign:
            raise BadUsage(
                f"--budget {text!r}: expected KIND=NUMBER, KIND one of {', '.join(UNITS)}; such as a16=4, bytes=3.1MB"
            )
        if found is None or found[2] not in UNITS[kind]:
            units = ", ".join(u for u in UNITS[kind] if u) or "no unit"
            raise BadUsage(f"--budget {text!r}: expected {kind}= and a number in {units}")
        if kind == "a16" and "." in found[1]:
            raise BadUsage(f"--budget {text!r}: a number of layers is whole")
        return cls(kind, float(found[1]) * UNITS[kind][found[2]])


@dataclass(frozen=True)
class Costs:
    """One kind of cost of every assignment of a space: `base` of the first choices, and what another choice adds."""

    kind: str
    base: float
    layer: Mapping[str, float]
    ends: Mapping[str, float]

    def of(self, given: Mapping[str, str]) -> float:
        return self.base + math.fsum(self.ends[c] if p == ENDS else self.layer[c] for p, c in given.items())

    def of_choice(self, place: str, choice: str) -> float:
        return self.ends[choice] if place == ENDS else self.layer[choice]

    def least(self, n_layer: int) -> float:
        return self.base + n_layer * min(self.layer.values()) + min(self.ends.values())


def costs(kind: str, space: Space, config: Any, price: Price | None = None, watts: float | None = None) -> Costs:
    """The costs of a kind.  Times need a `price` of a step, energy also `watts`: BadUsage without."""
    if kind == "a16":
        return Costs(
            kind, 0.0, {c: float(Choice.parse(c).act == 16) for c in space.choices}, dict.fromkeys(space.ends, 0.0)
        )

    def whole(choice: str, ends: str) -> float:
        manifest = outline(space.family, config, space.recipe(space.uniform(choice, ends)))
        return float(weight_bytes(manifest)) if kind == "bytes" else seconds(manifest)

    def seconds(manifest: Any) -> float:
        assert price is not None
        tokens = CHUNKS[0] if kind == "prefill" else 1
        program = models.find(space.family, "program").program(manifest, 1, tokens, "last")
        spent = math.fsum(price(step, manifest, tokens) for step in program.steps)
        return spent * watts if kind == "energy" and watts is not None else spent

    if kind != "bytes" and price is None:
        raise BadUsage(
            f"--budget {kind}= needs times: --costs FILE (what `bench --profile --json` printed on the device, of bundles in every mode "
            "that the search may choose), or --device NAME to predict them"
        )
    if kind == "energy" and watts is None:
        raise BadUsage(
            "--budget energy= needs --watts W, what the device draws meanwhile, or a --device whose mode has a limit"
        )
    first = whole(space.choices[0], space.ends[0])
    layer = {c: (whole(c, space.ends[0]) - first) / space.n_layer for c in space.choices}
    return Costs(kind, first, layer, {e: whole(space.choices[0], e) - first for e in space.ends})


def predicted(machine: predict.Machine, state_dtype: str) -> Price:
    """Prices on a machine that is not at hand."""
    return lambda step, manifest, tokens: predict.seconds(step, cost_of(step, manifest, state_dtype), machine)


def measured(files: Sequence[Path]) -> Price:
    """Prices from the JSON of `bench --profile`: of each op the median over the layers that have it, less what its own clock costs.

    BadText for other files; the price raises BadUsage for an op that none of them has.
    """
    found: dict[tuple[int, str, bool], list[float]] = {}
    for path in files:
        try:
            profiles = json.loads(path.read_text().strip().splitlines()[-1])["profiles"]
            for profile in profiles:
                share = profile["seconds"] / profile["timed_seconds"]
                for op in profile["ops"]:
                    key = int(profile["tokens"]), str(op["name"]), op["layer"] is None
                    if profile["batch"] == 1:
                        found.setdefault(key, []).append(float(op["seconds"]) * share)
        except (OSError, ValueError, KeyError, TypeError, IndexError, ZeroDivisionError) as e:
            raise BadText(
                f"{path}: is not what `quamba-edge bench BUNDLE --profile --json` prints ({type(e).__name__}: {e})"
            ) from None
    table = {key: float(np.median(seconds)) for key, seconds in found.items()}

    def price(step: Step, manifest: Any, tokens: int) -> float:
        place = step.site.split(".")[-1] if step.op.name.startswith("linear") else ""
        name = f"{step.op.name} {place}".strip()
        key = tokens, name, not step.site.startswith("layers.")
        if key not in table:
            raise BadUsage(
                f"--costs: no file has {name} in a step of {tokens} tokens: profile a bundle that has it too, "
                "with `quamba-edge bench BUNDLE --profile --json`"
            )
        return table[key]

    return price
