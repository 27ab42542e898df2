"""A model's step as data: a flat list of ops with their arguments bound by name.

`models/<family>/program.py` writes one; a backend records it into a plan (runtime/plan.py) and replays that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quamba_edge.ops.op import Op


@dataclass(frozen=True)
class Buffer:
    """A named activation of the arena, contiguous."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Ref:
    """An argument: a `weight` of the bundle, a `buffer` of the arena, or a `state` of the session.

    `cols` selects a column range of a buffer's last axis, which the kernel sees as a strided array; `rows` a range of its first.
    """

    kind: str
    name: str
    cols: tuple[int, int] | None = None
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Step:
    """One op with everything bound; `site` is where it stands in the model, for profiles and errors."""

    op: Op
    args: Mapping[str, Ref]
    sizes: Mapping[str, int]
    scalars: Mapping[str, float]
    site: str


@dataclass(frozen=True)
class StateSpec:
    """One state array of a session: shape per sequence, and whether its dtype follows the session's choice."""

    name: str  # e.g. layers.3.ssm
    shape: tuple[int, ...]
    dtype: str  # "f32", or "state"


@dataclass(frozen=True)
class Program:
    """Inputs: buffer `tokens`, i32 (S*T).  Output: buffer `logits`, f32, of (S, V), (S*T, V) or absent."""

    sequences: int
    tokens: int
    buffers: tuple[Buffer, ...]
    states: tuple[StateSpec, ...]
    steps: tuple[Step, ...]
